//! What a cut, and the end of a drain, do to open flows.
//!
//! "Within one round trip" is shown without trusting a clock on a busy machine: the kernel counts
//! retransmissions of each TCP socket. A reset that comes without one is the answer to the very first segment that
//! was sent after the cut, and a connection that is established without one took one exchange. The times are
//! measured all the same, beside the round trip before the cut.

use anyhow::{Context, Result, bail, ensure};
use bg_common::Colour;
use bg_tests::{
    Lab, Ready, Setting, Worker, address,
    config::{DEPLOYMENT, http_vip, udp_vip},
    in_each_setting,
    load::Echo,
    monotonic_ns, retransmissions,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};
use tokio::io::AsyncWriteExt;

/// A machine that does other things too may be this much late without being wrong.
const SLACK: Duration = Duration::from_millis(3);

/// Waits until a counter has grown by this much.
fn wait_for_more(counter: &AtomicUsize, more: usize) -> Result<()> {
    let (start, enough) = (Instant::now(), counter.load(Ordering::Relaxed) + more);
    while counter.load(Ordering::Relaxed) < enough {
        ensure!(start.elapsed() < Duration::from_secs(30), "{counter:?} does not reach {enough}");
        thread::sleep(Duration::from_millis(1));
    }
    Ok(())
}

#[test]
fn a_udp_stream_moves_with_the_first_packet_after_the_cut() -> Result<()> {
    let ready = Ready::native("")?;
    for (vip, to) in [(address::VIP_V4, Colour::Green), (address::VIP_V6, Colour::Blue)] {
        let stream = Echo::open(&ready.lab.client, udp_vip(vip))?;
        // For the one answer that the cut may take away.
        stream.set_patience(Duration::from_secs(2))?;
        assert_eq!(stream.ask("before")?.colour, to.other());
        let (stop, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (sent, started_ns, returned_ns) = thread::scope(|scope| -> Result<_> {
            let stream = scope.spawn(|| {
                let mut sent = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let sent_ns = monotonic_ns();
                    let answer = stream.ask(&sent.len().to_string()).ok();
                    answered.fetch_add(usize::from(answer.is_some()), Ordering::Relaxed);
                    sent.push((sent_ns, answer.map(|answer| answer.colour)));
                }
                sent
            });
            let before = wait_for_more(&answered, 30);
            let started_ns = monotonic_ns();
            let switched = ready.bgctl.run(&["switch", DEPLOYMENT, to.name(), "--on-switch", "cut"]);
            let returned_ns = monotonic_ns();
            let after = wait_for_more(&answered, 30);
            stop.store(true, Ordering::Relaxed);
            switched.and(before).and(after)?;
            Ok((stream.join().expect("the stream panicked"), started_ns, returned_ns))
        })?;
        let before = sent.iter().filter(|(sent_ns, _)| *sent_ns < started_ns);
        assert!(before.clone().count() > 20 && before.clone().all(|(_, colour)| colour.is_some()));
        let first_after = sent.iter().position(|(sent_ns, _)| *sent_ns > returned_ns).context("no packet after it")?;
        assert!(sent.len() - first_after > 20, "{} packets after it", sent.len() - first_after);
        for (number, (_, colour)) in sent.iter().enumerate().skip(first_after) {
            assert_eq!(*colour, Some(to), "packet {number}, the first after the cut is {first_after}");
        }
        // The stream has moved once, and at most the packet that met the cut on its way lost its answer.
        let answers: Vec<_> = sent.iter().filter_map(|(_, colour)| *colour).collect();
        assert!(sent.len() - answers.len() <= 1, "{} answers are missing", sent.len() - answers.len());
        let moves = answers.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert_eq!((answers[0], moves), (to.other(), 1));
    }
    Ok(())
}

#[test]
fn an_idle_tcp_client_is_reset_at_its_next_request_and_then_reaches_the_new_colour() -> Result<()> {
    const ROUNDS: usize = 10;
    let ready = Ready::native("")?;
    let (mut resets, mut reconnects, mut round_trips) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        let vip = http_vip([address::VIP_V4, address::VIP_V6][round / 2 % 2]);
        let to = [Colour::Green, Colour::Blue][round % 2];
        let mut client = Client::connect(&ready.lab, vip)?;
        for _ in 0..20 {
            let start = Instant::now();
            assert_eq!(client.ask()?, to.other());
            round_trips.push(start.elapsed());
        }
        ready.bgctl.run(&["switch", DEPLOYMENT, to.name(), "--on-switch", "cut"])?;
        let retransmitted = retransmissions(&client.stream)?;

        let start = Instant::now();
        let error = client.ask().expect_err("the connection was cut");
        resets.push(start.elapsed());
        assert_reset(&error);
        assert_eq!(retransmissions(&client.stream)?, retransmitted, "the reset answers the first segment");

        let start = Instant::now();
        let mut client = Client::connect(&ready.lab, vip)?;
        reconnects.push(start.elapsed());
        assert_eq!(retransmissions(&client.stream)?, 0);
        assert_eq!(client.ask()?, to);
    }
    let (round_trip, reset, reconnect) = (undisturbed(round_trips), undisturbed(resets), undisturbed(reconnects));
    println!("round trip {round_trip:?}, until the reset {reset:?}, until connected anew {reconnect:?}");
    assert!(reset < 2 * round_trip + SLACK, "{reset:?}, a round trip takes {round_trip:?}");
    assert!(reconnect < 2 * round_trip + SLACK, "{reconnect:?}, a round trip takes {round_trip:?}");
    Ok(())
}

#[test]
fn a_tcp_client_in_the_middle_of_a_transfer_is_reset_and_then_reaches_the_new_colour() -> Result<()> {
    const ROUNDS: usize = 6;
    let ready = Ready::native("")?;
    let lab = &ready.lab;
    let _downloads = lab.backends.iter().map(downloads).collect::<Result<Vec<_>>>()?;
    let mut config = bg_tests::config::shop(lab, "nat", "");
    config += &downloads_service(lab);
    ready.bgctl.apply(&config)?;
    let live = ready.live()?;
    let mut times = vec![];
    for round in 0..ROUNDS {
        let to = [Colour::Green, Colour::Blue][round % 2];
        let mut client = Client::connect(lab, SocketAddr::new(address::VIP_V4, DOWNLOAD_PORT))?;
        assert_eq!(client.line()?, to.other());
        let before = live.word();
        let received = AtomicUsize::new(0);
        let (error, since_store, returned) = thread::scope(|scope| -> Result<_> {
            let transfer = scope.spawn(|| {
                let mut stored = None;
                let mut buffer = vec![0; 256 * 1024];
                let end = Instant::now() + Duration::from_secs(40);
                loop {
                    if Instant::now() > end {
                        break (ErrorKind::TimedOut, stored, Instant::now());
                    }
                    let result = client.stream.read(&mut buffer);
                    if stored.is_none() && live.word() != before {
                        stored = Some(Instant::now());
                    }
                    match result {
                        Ok(0) => break (ErrorKind::UnexpectedEof, stored, Instant::now()),
                        Ok(length) => _ = received.fetch_add(length, Ordering::Relaxed),
                        Err(error) => break (error.kind(), stored, Instant::now()),
                    }
                }
            });
            wait_for_more(&received, 1 << 20).context("the transfer is not in full swing")?;
            ready.bgctl.run(&["switch", DEPLOYMENT, to.name(), "--on-switch", "cut"])?;
            let returned = Instant::now();
            let (error, stored, ended) = transfer.join().expect("the transfer panicked");
            Ok((error, stored.map(|stored| ended - stored), ended.saturating_duration_since(returned)))
        })?;
        assert_eq!(error, ErrorKind::ConnectionReset, "after {received:?} octets");
        assert!(returned < Duration::from_millis(200), "{returned:?} after the switch had returned");
        times.push(since_store.unwrap_or_default());

        let mut client = Client::connect(lab, SocketAddr::new(address::VIP_V4, DOWNLOAD_PORT))?;
        assert_eq!(retransmissions(&client.stream)?, 0);
        assert_eq!(client.line()?, to);
    }
    println!("from the store to the reset: {times:?}");
    assert!(undisturbed(times.clone()) < Duration::from_millis(50), "from the store to the reset: {times:?}");
    Ok(())
}

fn a_drain_ends_what_is_left_when_its_time_is_over(setting: Setting) -> Result<()> {
    const TIMEOUT: Duration = Duration::from_secs(1);
    const VIPS: [IpAddr; 2] = [address::VIP_V4, address::VIP_V6];
    let ready = setting.ready("drain_timeout = \"1s\"")?;
    let streams =
        VIPS.into_iter().map(|vip| Echo::open(&ready.lab.client, udp_vip(vip))).collect::<Result<Vec<_>>>()?;
    let clients = VIPS.into_iter().map(|vip| Client::connect(&ready.lab, http_vip(vip)));
    let mut clients = clients.collect::<Result<Vec<_>>>()?;
    let mut all_are_on_blue = || -> Result<bool> {
        let udp = streams.iter().map(|stream| Ok(stream.ask("which?")?.colour)).collect::<Result<Vec<_>>>()?;
        let tcp = clients.iter_mut().map(Client::ask).collect::<Result<Vec<_>>>()?;
        Ok([udp, tcp].concat() == [Colour::Blue; 4])
    };
    assert!(all_are_on_blue()?);
    let start = Instant::now();
    ready.bgctl.run(&["switch", DEPLOYMENT])?;
    let returned = Instant::now();
    assert!(start.elapsed() > TIMEOUT || ready.bgctl.deployment(DEPLOYMENT)?["phase"] == "draining");
    // The data path's clock ticks several times a second; it may be late by one tick, and early by none.
    let tick = Duration::from_millis(700);
    while start.elapsed() < TIMEOUT - Duration::from_millis(300) {
        let is_on_blue = all_are_on_blue();
        if start.elapsed() < TIMEOUT {
            assert!(is_on_blue?, "{:?} after the switch", start.elapsed());
        }
        thread::sleep(Duration::from_millis(20));
    }
    while returned.elapsed() < TIMEOUT + tick {
        thread::sleep(Duration::from_millis(20));
    }
    for stream in &streams {
        assert_eq!(stream.ask("afterwards")?.colour, Colour::Green);
    }
    for (client, vip) in clients.iter_mut().zip(VIPS) {
        assert_reset(&client.ask().expect_err("the drain is over"));
        assert_eq!(Client::connect(&ready.lab, http_vip(vip))?.ask()?, Colour::Green);
    }
    assert_eq!(ready.bgctl.deployment(DEPLOYMENT)?["phase"], "steady");
    ready.neighbour_is_undisturbed()
}

in_each_setting!(a_drain_ends_what_is_left_when_its_time_is_over);

/// Port of the downloads, at the VIP and at the backends.
const DOWNLOAD_PORT: u16 = 9000;

fn downloads_service(lab: &Lab) -> String {
    let of = |colour: Colour| {
        let backends = lab.backends.iter().filter(|backend| backend.colour == colour);
        backends.map(|backend| format!("\"{}:{DOWNLOAD_PORT}\"", backend.addresses[0])).collect::<Vec<_>>().join(", ")
    };
    format!(
        "\n[[deployments.{DEPLOYMENT}.services]]\nname = \"downloads\"\nvip = \"{}:{DOWNLOAD_PORT}\"\n\
         protocol = \"tcp\"\nmode = \"nat\"\nblue = [{}]\ngreen = [{}]\n",
        address::VIP_V4,
        of(Colour::Blue),
        of(Colour::Green)
    )
}

/// Sends a line that names the backend, then as much as the client takes.
fn downloads(backend: &bg_tests::Backend) -> Result<Worker> {
    let says = format!("{}\n", backend.says());
    let IpAddr::V4(address) = backend.addresses[0] else { bail!("expected an IPv4 address first") };
    let listener = backend.namespace.enter(|| std::net::TcpListener::bind((address, DOWNLOAD_PORT)))??;
    listener.set_nonblocking(true)?;
    Worker::spawn(&backend.namespace, async move |mut stop| {
        let listener = tokio::net::TcpListener::from_std(listener)?;
        loop {
            let (mut stream, _) = tokio::select! {
                accepted = listener.accept() => accepted?,
                () = stop.wait() => return Ok(()),
            };
            let says = says.clone();
            tokio::spawn(async move {
                let zeros = vec![0; 64 * 1024];
                stream.write_all(says.as_bytes()).await?;
                loop {
                    stream.write_all(&zeros).await?;
                }
                #[expect(unreachable_code, reason = "names the type of the error")]
                std::io::Result::Ok(())
            });
        }
    })
}

/// An HTTP client on a connection that it keeps.
struct Client {
    stream: TcpStream,
}

impl Client {
    fn connect(lab: &Lab, server: SocketAddr) -> Result<Self> {
        let stream = lab.client.enter(|| TcpStream::connect_timeout(&server, Duration::from_secs(5)))??;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(Self { stream })
    }

    /// One request, one answer.
    fn ask(&mut self) -> Result<Colour> {
        self.stream.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n")?;
        while !self.read_line()?.trim_end().is_empty() {}
        self.line()
    }

    /// The colour that a line begins with.
    fn line(&mut self) -> Result<Colour> {
        let line = self.read_line()?;
        let word = line.split_whitespace().next().unwrap_or_default();
        Colour::ALL.into_iter().find(|colour| colour.name() == word).with_context(|| format!("no colour: {line:?}"))
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut octet = [0];
            self.stream.read_exact(&mut octet)?;
            line.push(octet[0]);
        }
        Ok(String::from_utf8(line)?)
    }
}

fn assert_reset(error: &anyhow::Error) {
    let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    assert_eq!(kind, Some(ErrorKind::ConnectionReset), "{error:#}");
}

/// What it takes where nothing else keeps the processors busy: the upper bound of the fastest fifth.
fn undisturbed(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 5]
}
