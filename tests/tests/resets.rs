//! A cut ends connections by itself: no stack has to know them, and no firewall lets anything about them through.

use anyhow::Result;
use bg_common::Colour;
use bg_tests::{
    Lab, Setting, address,
    config::{DEPLOYMENT, http_vip},
    in_each_setting,
    load::PATIENCE,
    no_backend_knows, retransmissions,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, TcpStream},
};

fn connect(lab: &Lab, vip: IpAddr) -> Result<TcpStream> {
    let stream = lab.client.enter(|| TcpStream::connect_timeout(&http_vip(vip), PATIENCE))??;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream) -> std::io::Result<String> {
    stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    let mut answer = [0; 1024];
    let length = stream.read(&mut answer)?;
    let text = String::from_utf8_lossy(&answer[..length]).into_owned();
    Ok(text.split("\r\n\r\n").nth(1).unwrap_or_default().split(' ').next().unwrap_or_default().to_owned())
}

/// Round after round, a connection that says nothing when it is cut.
fn both_ends_are_reset(setting: Setting) -> Result<()> {
    let ready = setting.ready_behind_firewalls()?;
    let lab = &ready.lab;
    for round in 0..4 {
        let vip = [address::VIP_V4, address::VIP_V6][round / 2];
        let to = [Colour::Green, Colour::Blue][round % 2];
        let mut stream = connect(lab, vip)?;
        let client = stream.local_addr()?;
        assert_eq!(ask(&mut stream)?, to.other().name());
        ready.bgctl.run(&["switch", DEPLOYMENT, to.name(), "--on-switch", "cut"])?;
        let retransmitted = retransmissions(&stream)?;
        let error = ask(&mut stream).expect_err("the connection was cut");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error}");
        assert_eq!(retransmissions(&stream)?, retransmitted, "the first segment after the cut was answered");
        no_backend_knows(lab, client)?;
        assert_eq!(ask(&mut connect(lab, vip)?)?, to.name());
    }
    assert!(ready.bgctl.json(&["status"])?["events"]["ended_reset"].as_u64() >= Some(4));
    ready.neighbour_is_undisturbed()
}

in_each_setting!(both_ends_are_reset);
