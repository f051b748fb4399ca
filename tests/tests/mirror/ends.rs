//! Both ends of the service under test: servers that note what they receive, and clients that hear everybody.

use crate::{PATIENCE, SERVER_PORT};
use anyhow::{Context as _, Result, ensure};
use bg_common::Colour;
use bg_tests::{Lab, Namespace, hold_bursts};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A datagram: who has sent it, and its content.
pub(crate) type Datagram = (SocketAddr, Vec<u8>);

/// The servers of one colour. Each notes what it receives, and answers it with its colour in front.
pub(crate) struct Recorder {
    /// By the server's address.
    received: Arc<Mutex<BTreeMap<SocketAddr, Vec<Datagram>>>>,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Recorder {
    pub(crate) fn start(lab: &Lab, colour: Colour) -> Result<Self> {
        let mut this = Self { received: Arc::default(), is_over: Arc::default(), threads: Vec::new() };
        for backend in lab.backends.iter().filter(|backend| backend.colour == colour) {
            for address in backend.addresses {
                let socket = open(&backend.namespace, SocketAddr::new(address, SERVER_PORT))?;
                let (received, is_over) = (this.received.clone(), this.is_over.clone());
                let at = socket.local_addr()?;
                this.threads.push(thread::spawn(move || {
                    let mut buffer = [0; 2048];
                    while !is_over.load(Ordering::Relaxed) {
                        let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                        let content = buffer[..length].to_vec();
                        let answer = [&[colour as u8], &content[..]].concat();
                        received.lock().expect("no panic").entry(at).or_default().push((client, content));
                        // Of a client that is gone, nothing is to be heard.
                        let _ = socket.send_to(&answer, client);
                    }
                }));
            }
        }
        Ok(this)
    }

    /// All that was received, sorted.
    pub(crate) fn all(&self) -> Vec<Datagram> {
        let received = self.received.lock().expect("no panic");
        let mut all: Vec<_> = received.values().flatten().cloned().collect();
        all.sort();
        all
    }

    /// Waits until so many datagrams have come.
    pub(crate) fn wait_for(&self, datagrams: usize) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        while self.all().len() < datagrams {
            ensure!(Instant::now() < end, "{} of {datagrams} have come", self.all().len());
            thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// The servers that have received datagrams of each client.
    pub(crate) fn servers_of_clients(&self) -> BTreeMap<SocketAddr, BTreeSet<SocketAddr>> {
        let mut servers = BTreeMap::<_, BTreeSet<_>>::new();
        for (server, datagrams) in self.received.lock().expect("no panic").iter() {
            for (client, _) in datagrams {
                servers.entry(*client).or_default().insert(*server);
            }
        }
        servers
    }

    pub(crate) fn forget(&self) {
        self.received.lock().expect("no panic").clear();
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn open(namespace: &Namespace, at: SocketAddr) -> Result<UdpSocket> {
    let socket = namespace.enter(|| UdpSocket::bind(at))?.with_context(|| format!("cannot bind {at}"))?;
    hold_bursts(&socket)?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// A socket of the client that is not connected, so that it hears everybody.
pub(crate) struct Flow {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Flow {
    pub(crate) fn open(client: &Namespace, from: IpAddr, to: SocketAddr) -> Result<Self> {
        Ok(Self { socket: open(client, SocketAddr::new(from, 0))?, to })
    }

    /// The same port, to another address.
    pub(crate) fn also_to(&self, to: SocketAddr) -> Result<Self> {
        Ok(Self { socket: self.socket.try_clone()?, to })
    }

    /// Sends a datagram, and waits for its answer. It must be that of this colour, from the address that was asked.
    pub(crate) fn ask(&self, content: &[u8], expected: Colour) -> Result<Datagram> {
        self.socket.send_to(content, self.to)?;
        self.hear(content, expected)
    }

    /// Sends datagrams of this length, which leave as one packet. Each is to be answered.
    pub(crate) fn ask_as_one(&self, content: &[u8], length: u16, expected: Colour) -> Result<Vec<Datagram>> {
        let segment = i32::from(length);
        // SAFETY: the pointer is to an integer of the length given, which outlives the call.
        let set = unsafe {
            libc::setsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_UDP,
                libc::UDP_SEGMENT,
                (&raw const segment).cast(),
                size_of_val(&segment) as libc::socklen_t,
            )
        };
        ensure!(set == 0, "no segments: {}", std::io::Error::last_os_error());
        self.socket.send_to(content, self.to)?;
        content.chunks(length.into()).map(|content| self.hear(content, expected)).collect()
    }

    /// Waits for the answer of this colour to a datagram.
    fn hear(&self, content: &[u8], expected: Colour) -> Result<Datagram> {
        let (end, mut buffer) = (Instant::now() + PATIENCE, [0; 2048]);
        loop {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, from)) => {
                    assert_eq!(from, self.to, "an answer from elsewhere");
                    assert_eq!((buffer[0], &buffer[1..length]), (expected as u8, content), "another colour's answer");
                    return Ok((self.socket.local_addr()?, content.to_vec()));
                }
                Err(_) => ensure!(Instant::now() < end, "no answer from {}", self.to),
            }
        }
    }

    pub(crate) fn is_v4(&self) -> bool {
        self.to.is_ipv4()
    }

    /// Asserts that nothing else arrives.
    pub(crate) fn is_silent(&self) {
        assert!(self.socket.recv_from(&mut [0; 2048]).is_err(), "an answer too many");
    }
}
