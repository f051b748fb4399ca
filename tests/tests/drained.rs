//! `bgctl drain`: its counts are those of the backends' own sockets, and what it resets ends at both ends though neither says a word.

use anyhow::{Context, Result, ensure};
use bg_tests::{
    Fabric, Lab, Ready, Setting, address,
    config::{DEPLOYMENT, NEIGHBOUR, http_vip, shop},
    in_each_setting,
    load::PATIENCE,
};
use serde_json::Value;
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpStream},
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

/// Opens a connection that is accepted, and then says nothing more.
fn connect(lab: &Lab, vip: IpAddr) -> Result<TcpStream> {
    let mut stream = lab.client.enter(|| TcpStream::connect_timeout(&http_vip(vip), PATIENCE))??;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    let mut answer = [0; 1024];
    ensure!(stream.read(&mut answer)? > 0);
    Ok(stream)
}

/// How a connection ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// The client closes it, and the server follows.
    Client,
    /// The client resets it.
    Reset,
    /// The server closes it, and the client follows.
    Server,
}

fn end(mut stream: TcpStream, how: End) -> Result<()> {
    match how {
        End::Client => {}
        End::Reset => {
            let linger = libc::linger { l_onoff: 1, l_linger: 0 };
            // SAFETY: the pointer is to a linger of the length given, which outlives the call.
            let set = unsafe {
                let linger: *const libc::linger = &raw const linger;
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::SOL_SOCKET,
                    libc::SO_LINGER,
                    linger.cast(),
                    size_of::<libc::linger>() as libc::socklen_t,
                )
            };
            ensure!(set == 0, std::io::Error::last_os_error());
        }
        End::Server => {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")?;
            stream.read_to_end(&mut Vec::new())?;
        }
    }
    Ok(())
}

/// Connections of the deployment under test that the backends have open, by their own sockets.
fn sockets(lab: &Lab, ports: &[u16]) -> Result<usize> {
    let mut namespaces: Vec<_> = lab.backends.iter().map(|backend| &backend.namespace).collect();
    namespaces.dedup_by_key(|namespace| namespace.name().to_owned());
    let mut count = 0;
    for namespace in namespaces {
        for line in namespace.run("ss -H -t -n state established state close-wait sport = :8080")?.lines() {
            let port = line.split_whitespace().last().and_then(|peer| peer.rsplit(':').next());
            count += usize::from(port.and_then(|port| port.parse().ok()).is_some_and(|port| ports.contains(&port)));
        }
    }
    Ok(count)
}

fn drain(ready: &Ready, options: &[&str]) -> Result<(Option<i32>, Value)> {
    ready.bgctl.try_json(&[&["drain", DEPLOYMENT], options].concat())
}

/// Waits until the count of the drain and that of the sockets are this number.
fn both_count(ready: &Ready, ports: &[u16], expected: usize) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let ((code, drained), sockets) = (drain(ready, &[])?, sockets(&ready.lab, ports)?);
        let by_backend: u64 =
            drained["backends"].as_array().into_iter().flatten().filter_map(|of| of["flows"].as_u64()).sum();
        if drained["left"] == expected && by_backend == expected as u64 && sockets == expected {
            assert_eq!(code, Some(if expected == 0 { 0 } else { 4 }));
            return Ok(());
        }
        ensure!(Instant::now() < end, "expected {expected}, {sockets} sockets and {drained:#}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn what_is_left_is_counted_and_reset(setting: Setting) -> Result<()> {
    let ready = setting.ready_behind_firewalls()?;
    let each = if std::env::var_os("BG_TEST_FULL").is_some() { 400 } else { 40 };
    what_is_left(&ready, each)
}

fn what_is_left(ready: &Ready, each: usize) -> Result<()> {
    let lab = &ready.lab;
    let mut clients = Vec::new();
    for vip in [address::VIP_V4, address::VIP_V6] {
        for _ in 0..each {
            clients.push(connect(lab, vip)?);
        }
    }
    let ports = clients.iter().map(|client| Ok(client.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    assert_eq!(drain(ready, &["--wait"])?.1["left"], 0, "nothing was switched");
    ready.bgctl.run(&["switch", DEPLOYMENT])?;
    let new = connect(lab, address::VIP_V4)?;
    both_count(ready, &ports, 2 * each)?;
    // Some end by themselves.
    let ends = [End::Client, End::Reset, End::Server];
    for (share, how) in [each / 4, each / 2, each / 3].into_iter().zip(ends.into_iter().cycle()) {
        clients.drain(..share).try_for_each(|client| end(client, how))?;
        both_count(ready, &ports, clients.len()).with_context(|| format!("{how:?}"))?;
    }
    let start = Instant::now();
    let (code, drained) = drain(ready, &["--wait", "--timeout", "300ms", "--then", "keep"])?;
    assert_eq!((code, &drained["left"]), (Some(4), &clients.len().into()));
    assert!(start.elapsed() >= Duration::from_millis(300));

    let start = Instant::now();
    let (code, drained) = drain(ready, &["--then", "reset"])?;
    println!("{} silent connections were reset at both ends in {:?}", clients.len(), start.elapsed());
    assert_eq!((code, &drained["left"], &drained["reset"]), (Some(0), &0.into(), &clients.len().into()), "{drained:#}");
    for client in &mut clients {
        let error = client.read(&mut [0; 64]).expect_err("a reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
    }
    both_count(ready, &ports, 0)?;
    // What is not on the idle colour goes on.
    (&new).write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    assert!((&new).read(&mut [0; 1024])? > 0);
    assert_eq!(ready.bgctl.json(&["drain", NEIGHBOUR])?["left"], 0);
    ready.neighbour_is_undisturbed()
}

in_each_setting!(what_is_left_is_counted_and_reset);

#[test]
fn a_backend_is_reset_though_its_client_is_gone() -> Result<()> {
    let ready = Setting::Native.ready_behind_firewalls()?;
    let lab = &ready.lab;
    let clients = [address::VIP_V4, address::VIP_V6].map(|vip| connect(lab, vip));
    let clients = clients.into_iter().collect::<Result<Vec<_>>>()?;
    let ports = clients.iter().map(|client| Ok(client.local_addr()?.port())).collect::<Result<Vec<_>>>()?;
    ready.bgctl.run(&["switch", DEPLOYMENT])?;
    both_count(&ready, &ports, 2)?;
    for line in
        ["add table inet gone", "add chain inet gone input { type filter hook input priority 0 ; policy drop ; }"]
    {
        lab.client.run(&format!("nft {line}"))?;
    }
    let (code, drained) = drain(&ready, &["--then", "reset"])?;
    assert_eq!((code, &drained["reset"]), (Some(0), &2.into()), "{drained:#}");
    both_count(&ready, &ports, 0)
}

/// Ten thousand connections, with BG_TEST_FULL. The servers are processes of their own, since a process has not so many descriptors.
#[test]
fn however_many_are_left_the_count_is_that_of_the_sockets() -> Result<()> {
    let each = if std::env::var_os("BG_TEST_FULL").is_some() { 5000 } else { 150 };
    let lab = Lab::wire(Fabric::Switch)?;
    lab.guard_backends()?;
    let _servers = lab.nginxes()?;
    let config = shop(&lab, "nat", "");
    what_is_left(&Ready::with_others(lab, "native", &config)?, each)
}
