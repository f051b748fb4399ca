//! The proxy with real sockets of this host, without an instance.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bg_common::Colour;
use rustix::net::sockopt::set_socket_linger;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    time::{Instant, sleep, timeout},
};

use super::{
    Proxy, Running,
    copy::QUEUE,
    counts::{Count, Counts},
    service::{Flows, Limits, Service},
};
use crate::teed::{Brought, Listener, Teed, TeedBackend};

const VIP: &str = "203.0.113.10:443";

/// A data path of one connection's making.
#[derive(Clone)]
struct Told {
    brought: Arc<Mutex<Option<Brought>>>,
    /// How often it is asked in vain before.
    misses: Arc<AtomicUsize>,
    green_is_live: Arc<AtomicBool>,
}

impl Told {
    fn user() -> Self {
        Self::with(Some(Brought { destination: VIP.parse().unwrap(), is_confined: false }))
    }

    fn with(brought: Option<Brought>) -> Self {
        Self { brought: Arc::new(Mutex::new(brought)), misses: Arc::default(), green_is_live: Arc::default() }
    }
}

impl Flows for Told {
    fn find(&self, _: Colour, _: SocketAddr) -> Option<Brought> {
        let one_less = |misses: usize| misses.checked_sub(1);
        match self.misses.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less) {
            Ok(_) => None,
            Err(_) => *self.brought.lock().unwrap(),
        }
    }

    fn is_live(&self, colour: Colour) -> bool {
        (colour == Colour::Green) == self.green_is_live.load(Ordering::SeqCst)
    }
}

/// A service with one backend of each colour, which the test plays.
struct Fed {
    service: Arc<Service>,
    teed: Teed,
    entry: TcpListener,
    backends: [TcpListener; 2],
}

impl Fed {
    async fn new(told: Told) -> Self {
        Self::with(told, 1000, |_| ()).await
    }

    async fn with(told: Told, most: usize, change: impl FnOnce(&mut Teed)) -> Self {
        let bind = || TcpListener::bind("127.0.0.1:0");
        let backends = [bind().await.unwrap(), bind().await.unwrap()];
        let listener = Listener { address: VIP.parse().unwrap(), slot: 0 };
        let of = |listener: &TcpListener| {
            vec![TeedBackend { address: listener.local_addr().unwrap(), weight: 1, is_down: false }]
        };
        let mut teed = Teed {
            service: 0,
            deployment: 0,
            name: "web".to_owned(),
            deployment_name: "shop".to_owned(),
            listeners: [listener; 2],
            backends: backends.each_ref().map(of),
            proxy_protocol: false,
            compare: false,
            idle_timeout: Duration::from_secs(60),
        };
        change(&mut teed);
        let service = Service::new(&teed, Box::new(told), Arc::<Counts>::default(), &Limits::new(most));
        Self { service, teed, entry: bind().await.unwrap(), backends }
    }

    /// A client whose connection has come to the listener of a colour.
    async fn client(&self, colour: Colour) -> TcpStream {
        let address = self.entry.local_addr().unwrap();
        let (client, accepted) = tokio::join!(TcpStream::connect(address), self.entry.accept());
        let (stream, from) = accepted.unwrap();
        self.service.accept(stream, from, colour);
        client.unwrap()
    }

    async fn backend(&self, colour: Colour) -> TcpStream {
        soon(self.backends[colour as usize].accept()).await.unwrap().0
    }

    /// Whether nobody connects to a colour for a while.
    async fn is_left_alone(&self, colour: Colour) -> bool {
        timeout(Duration::from_millis(200), self.backends[colour as usize].accept()).await.is_err()
    }

    fn count(&self, count: Count) -> u64 {
        self.service.counts.of(count)
    }

    async fn until(&self, count: Count, wanted: u64) {
        let end = Instant::now() + Duration::from_secs(15);
        while self.count(count) != wanted {
            assert!(Instant::now() < end, "{count:?}: {:?}", self.service.counts);
            sleep(Duration::from_millis(2)).await;
        }
    }
}

async fn soon<T>(work: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(15), work).await.expect("within some seconds")
}

async fn all(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    soon(stream.read_to_end(&mut bytes)).await.map(|_| bytes)
}

async fn some(stream: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    soon(stream.read_exact(&mut bytes)).await.unwrap();
    bytes
}

fn is_reset(read: io::Result<Vec<u8>>) -> bool {
    matches!(read, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

#[tokio::test(flavor = "multi_thread")]
async fn both_colours_get_every_byte_and_the_client_hears_the_live_one() {
    let fed = Fed::new(Told::user()).await;
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let mut client = fed.client(Colour::Blue).await;
    let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    idle.write_all(b"the answer of idle").await.unwrap();
    let talk = async {
        let (mut read, mut write) = client.split();
        let send = async {
            write.write_all(&bytes).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut answer = Vec::new();
        let (_, read) = tokio::join!(send, read.read_to_end(&mut answer));
        read.map(|_| answer)
    };
    let serve = async {
        let got = all(&mut live).await.unwrap();
        // The client has said all, and still hears.
        live.write_all(b"the answer of live").await.unwrap();
        drop(live);
        got
    };
    let (answer, to_live, to_idle) = tokio::join!(soon(talk), serve, all(&mut idle));
    drop(idle);
    assert_eq!(answer.unwrap(), b"the answer of live");
    assert!(to_live == bytes && to_idle.unwrap() == bytes);
    fed.until(Count::CopiedWhole, 1).await;
    assert_eq!((fed.count(Count::Accepted), fed.count(Count::Copied)), (1, 1));
    assert_eq!((fed.count(Count::CopySlow), fed.count(Count::CopyReset), fed.service.open.count()), (0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_follows_goes_on_for_more_than_may_wait() {
    const PART: usize = QUEUE / 4;
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    for number in 0..9 {
        let part = vec![number; PART];
        let (sent, to_live, to_idle) =
            tokio::join!(soon(client.write_all(&part)), some(&mut live, PART), some(&mut idle, PART));
        sent.unwrap();
        assert!(to_live == part && to_idle == part);
    }
    assert_eq!(fed.count(Count::CopySlow), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_may_say_all_first() {
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Green).await;
    let (mut live, mut idle) = (fed.backend(Colour::Green).await, fed.backend(Colour::Blue).await);
    live.write_all(b"hello").await.unwrap();
    live.shutdown().await.unwrap();
    assert_eq!(all(&mut client).await.unwrap(), b"hello");
    client.write_all(b"thanks").await.unwrap();
    client.shutdown().await.unwrap();
    assert_eq!(
        (all(&mut live).await.unwrap(), all(&mut idle).await.unwrap()),
        (b"thanks".to_vec(), b"thanks".to_vec())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reset_goes_on_to_the_other_end() {
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    client.write_all(b"ab").await.unwrap();
    assert_eq!((some(&mut live, 2).await, some(&mut idle, 2).await), (b"ab".to_vec(), b"ab".to_vec()));
    set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
    drop(client);
    assert!(is_reset(all(&mut live).await) && is_reset(all(&mut idle).await));

    let mut client = fed.client(Colour::Blue).await;
    let (live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    set_socket_linger(&live, Some(Duration::ZERO)).unwrap();
    drop(live);
    assert!(is_reset(all(&mut client).await) && is_reset(all(&mut idle).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backend_has_said_before_it_closed_reaches_a_client_that_still_sends() {
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let mut live = fed.backend(Colour::Blue).await;
    live.write_all(b"413 too large").await.unwrap();
    drop(live);
    assert_eq!(some(&mut client, 13).await, b"413 too large");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_client_gets_what_the_kernel_still_has_for_it_when_all_have_said_all() {
    // More than its own socket takes.
    let answer = vec![5; 400_000];
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    client.shutdown().await.unwrap();
    for backend in [&mut live, &mut idle] {
        assert!(all(backend).await.unwrap().is_empty());
    }
    soon(live.write_all(&answer)).await.unwrap();
    drop((live, idle));
    soon(async {
        while fed.service.open.count() > 0 {
            sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
    assert!(all(&mut client).await.unwrap() == answer);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_an_idle_colour_that_is_not_there() {
    let mut fed = Fed::new(Told::user()).await;
    // Its port is closed.
    fed.backends[1] = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = fed.client(Colour::Blue).await;
    let mut live = fed.backend(Colour::Blue).await;
    client.write_all(b"ab").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"ab");
    fed.until(Count::CopyNoBackend, 1).await;
    live.write_all(b"cd").await.unwrap();
    assert_eq!(some(&mut client, 2).await, b"cd");
    client.write_all(b"ef").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"ef");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_for_an_idle_colour_that_does_not_respond() {
    let mut fed = Fed::new(Told::user()).await;
    // Whoever connects gets no answer any more once its queue is full.
    let address = fed.backends[1].local_addr().unwrap();
    fed.backends[1] = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.bind(address).unwrap();
    let _full = socket.listen(0).unwrap();
    let mut queued = Vec::new();
    while let Ok(more) = timeout(Duration::from_millis(300), TcpStream::connect(address)).await {
        queued.push(more.unwrap());
    }
    let mut client = fed.client(Colour::Blue).await;
    let mut live = fed.backend(Colour::Blue).await;
    client.write_all(b"ab").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"ab");
    live.write_all(b"cd").await.unwrap();
    assert_eq!(some(&mut client, 2).await, b"cd");
    assert_eq!((fed.count(Count::Copied), fed.count(Count::CopyNoBackend)), (1, 0), "the copy still waits");
    fed.until(Count::CopyNoBackend, 1).await;
    client.write_all(b"ef").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"ef");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_cannot_follow_is_ended_and_the_connection_goes_on() {
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    // Far more than the queue and the kernel's buffers hold. Idle reads nothing.
    let bytes = vec![7_u8; 32 * QUEUE];
    let send = async {
        client.write_all(&bytes).await.unwrap();
        client.shutdown().await.unwrap();
    };
    let start = Instant::now();
    let (_, got) = tokio::join!(soon(send), all(&mut live));
    assert_eq!(got.unwrap().len(), bytes.len());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert_eq!(fed.count(Count::CopySlow), 1);
    let mut rest = Vec::new();
    assert!(soon(idle.read_to_end(&mut rest)).await.is_err(), "it cannot take what it got for all");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_backend_breaks_off_is_ended_and_the_connection_goes_on() {
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    client.write_all(b"ab").await.unwrap();
    assert_eq!((some(&mut live, 2).await, some(&mut idle, 2).await), (b"ab".to_vec(), b"ab".to_vec()));
    set_socket_linger(&idle, Some(Duration::ZERO)).unwrap();
    drop(idle);
    fed.until(Count::CopyReset, 1).await;
    client.write_all(b"cd").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"cd");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slower_backend_hears_of_the_end_after_it_has_answered() {
    let fed = Fed::new(Told::user()).await;
    for is_reset_at_the_end in [false, true] {
        let mut client = fed.client(Colour::Blue).await;
        let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
        client.write_all(b"ask").await.unwrap();
        assert_eq!((some(&mut live, 3).await, some(&mut idle, 3).await), (b"ask".to_vec(), b"ask".to_vec()));
        live.write_all(b"answer").await.unwrap();
        assert_eq!(some(&mut client, 6).await, b"answer");
        if is_reset_at_the_end {
            set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
        }
        drop(client);
        assert_eq!(is_reset(all(&mut live).await), is_reset_at_the_end);
        drop(live);
        let mut byte = [0];
        let early = timeout(Duration::from_millis(300), idle.read(&mut byte)).await;
        assert!(early.is_err(), "{early:?}");
        idle.write_all(b"ans").await.unwrap();
        sleep(Duration::from_millis(300)).await;
        idle.write_all(b"wer").await.unwrap();
        assert_eq!(is_reset(all(&mut idle).await), is_reset_at_the_end);
    }
    // One that says nothing is not waited for without end.
    let mut client = fed.client(Colour::Blue).await;
    let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    live.write_all(b"answer").await.unwrap();
    assert_eq!(some(&mut client, 6).await, b"answer");
    drop((client, live));
    assert_eq!(soon(idle.read(&mut [0])).await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_tester_sends_reaches_no_other_colour() {
    let destination: SocketAddr = VIP.parse().unwrap();
    let told = Told::with(Some(Brought { destination, is_confined: true }));
    let fed = Fed::new(told.clone()).await;
    let mut client = fed.client(Colour::Green).await;
    let mut tested = fed.backend(Colour::Green).await;
    client.write_all(b"a test").await.unwrap();
    assert_eq!(some(&mut tested, 6).await, b"a test");
    assert!(fed.is_left_alone(Colour::Blue).await);
    assert_eq!((fed.count(Count::Confined), fed.count(Count::Copied)), (1, 0));

    // The colour goes live: not one more byte.
    told.green_is_live.store(true, Ordering::SeqCst);
    client.write_all(b"for users now").await.unwrap();
    assert!(is_reset(all(&mut tested).await));
    let mut late = fed.client(Colour::Green).await;
    assert!(is_reset(all(&mut late).await) && fed.is_left_alone(Colour::Green).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_tester_is_ended_when_its_colour_goes_live() {
    let destination: SocketAddr = VIP.parse().unwrap();
    let told = Told::with(Some(Brought { destination, is_confined: true }));
    let fed = Fed::new(told.clone()).await;
    let mut client = fed.client(Colour::Green).await;
    let mut tested = fed.backend(Colour::Green).await;
    fed.until(Count::Confined, 1).await;
    sleep(Duration::from_millis(50)).await;
    fed.service.end_confined();
    tested.write_all(b"still idle").await.unwrap();
    assert_eq!(some(&mut client, 10).await, b"still idle");
    told.green_is_live.store(true, Ordering::SeqCst);
    fed.service.end_confined();
    assert!(is_reset(all(&mut tested).await) && is_reset(all(&mut client).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_data_path_did_not_bring_is_refused() {
    let fed = Fed::new(Told::with(None)).await;
    let mut client = fed.client(Colour::Blue).await;
    assert!(is_reset(all(&mut client).await));
    assert_eq!(fed.count(Count::Foreign), 1);
    assert!(fed.is_left_alone(Colour::Blue).await && fed.is_left_alone(Colour::Green).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_whose_row_is_claimed_for_a_moment_is_found() {
    let told = Told::user();
    told.misses.store(3, Ordering::SeqCst);
    let fed = Fed::new(told).await;
    let mut client = fed.client(Colour::Blue).await;
    let mut live = fed.backend(Colour::Blue).await;
    client.write_all(b"ab").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"ab");
    assert_eq!(fed.count(Count::Foreign), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clients_address_comes_first_where_it_is_wanted() {
    let fed = Fed::with(Told::user(), 10, |teed| teed.proxy_protocol = true).await;
    let mut client = fed.client(Colour::Blue).await;
    client.write_all(b"ab").await.unwrap();
    let header = super::header::header(client.local_addr().unwrap(), VIP.parse().unwrap());
    for colour in Colour::ALL {
        let mut backend = fed.backend(colour).await;
        assert_eq!(some(&mut backend, header.len() + 2).await, [&header[..], b"ab"].concat());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_kept_and_a_stuck_copy_takes_no_place_of_a_connection() {
    let fed = Fed::with(Told::user(), 1, |_| ()).await;
    let client = fed.client(Colour::Blue).await;
    let (live, _stuck) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    let mut refused = fed.client(Colour::Blue).await;
    assert!(is_reset(all(&mut refused).await));
    assert_eq!(fed.count(Count::TooMany), 1);
    drop((client, live));
    // The copy still waits for its backend.
    sleep(Duration::from_millis(100)).await;
    let mut client = fed.client(Colour::Blue).await;
    let mut live = fed.backend(Colour::Blue).await;
    client.write_all(b"ab").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"ab");
    assert_eq!((fed.count(Count::CopyTooMany), fed.count(Count::Copied)), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_short_trouble_with_the_instance_ends_no_connection() {
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let mut live = fed.backend(Colour::Blue).await;
    let now = Instant::now();
    let listeners = [(); 2].map(|()| tokio::spawn(async {}).abort_handle());
    let running = Running { teed: fed.teed.clone(), service: fed.service.clone(), listeners, said: (now, 0) };
    let mut proxy = Proxy { running: [(0, running)].into(), ..Proxy::default() };
    let at = |seconds| now + Duration::from_secs(seconds);
    proxy.has_no_instance(at(0));
    proxy.has_no_instance(at(4));
    proxy.has_instance();
    proxy.has_no_instance(at(6));
    proxy.has_no_instance(at(10));
    assert_eq!(proxy.running.len(), 1);
    client.write_all(b"ab").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"ab");
    // It does not come back.
    proxy.has_no_instance(at(11));
    assert!(is_reset(all(&mut client).await) && is_reset(all(&mut live).await));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_silent_for_too_long_is_ended() {
    let fed = Fed::with(Told::user(), 10, |teed| teed.idle_timeout = Duration::from_millis(300)).await;
    let mut client = fed.client(Colour::Blue).await;
    let mut live = fed.backend(Colour::Blue).await;
    for _ in 0..6 {
        client.write_all(b"a").await.unwrap();
        assert_eq!(some(&mut live, 1).await, b"a");
        sleep(Duration::from_millis(100)).await;
    }
    assert!(is_reset(all(&mut client).await) && is_reset(all(&mut live).await));
    assert_eq!(fed.count(Count::Idle), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_reads_nothing_holds_up_its_backend_and_costs_no_memory() {
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let mut live = fed.backend(Colour::Blue).await;
    let block = vec![3_u8; 1 << 20];
    let mut written = 0_usize;
    while let Ok(more) = timeout(Duration::from_millis(500), live.write(&block)).await {
        written += more.unwrap();
        assert!(written < 64 << 20, "as much as two sockets hold");
    }
    drop(live);
    assert!(all(&mut client).await.unwrap().len() == written);
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_are_compared_as_a_whole() {
    let fed = Fed::with(Told::user(), 10, |teed| teed.compare = true).await;
    let talk = async |of_live: &[&[u8]], of_idle: &[u8]| {
        let mut client = fed.client(Colour::Blue).await;
        let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
        for part in of_live {
            live.write_all(part).await.unwrap();
            sleep(Duration::from_millis(5)).await;
        }
        idle.write_all(of_idle).await.unwrap();
        client.shutdown().await.unwrap();
        all(&mut live).await.unwrap();
        all(&mut idle).await.unwrap();
        drop((live, idle));
        all(&mut client).await.unwrap();
    };
    talk(&[b"+PO", b"NG\r\n"], b"+PONG\r\n").await;
    fed.until(Count::Same, 1).await;
    assert_eq!(fed.count(Count::Different), 0);
    talk(&[b"+PONG\r\n"], b"+PING\r\n").await;
    fed.until(Count::Different, 1).await;
    talk(&[b"+PONG\r\n"], b"+PONG").await;
    fed.until(Count::Different, 2).await;
    assert_eq!(fed.count(Count::Same), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_of_a_backend_that_is_taken_out_end_and_others_stay() {
    let fed = Fed::new(Told::user()).await;
    let mut client = fed.client(Colour::Blue).await;
    let (mut live, mut idle) = (fed.backend(Colour::Blue).await, fed.backend(Colour::Green).await);
    client.write_all(b"ab").await.unwrap();
    assert_eq!((some(&mut live, 2).await, some(&mut idle, 2).await), (b"ab".to_vec(), b"ab".to_vec()));
    let mut teed = fed.teed.clone();
    teed.backends[1][0].address = ([127, 0, 0, 1], 1).into();
    fed.service.update(&teed);
    assert!(is_reset(all(&mut idle).await));
    client.write_all(b"cd").await.unwrap();
    assert_eq!(some(&mut live, 2).await, b"cd");
    teed.backends[0][0].address = ([127, 0, 0, 1], 2).into();
    fed.service.update(&teed);
    assert!(is_reset(all(&mut live).await) && is_reset(all(&mut client).await));
}
