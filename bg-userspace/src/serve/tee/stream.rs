//! One end of a connection: reading and writing without a buffer of its own, and how it ends.

use std::{cell::RefCell, io, time::Duration};

use rustix::net::sockopt::set_socket_linger;
use tokio::{io::Interest, net::TcpStream};

/// How much is read at once.
const BLOCK: usize = 64 * 1024;

thread_local! {
    /// Bytes are here only from a read to the next suspension, so a connection that waits holds no buffer.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; BLOCK].into_boxed_slice());
}

/// A socket that is reset when it is dropped, unless the connection has come to its end. So neither end takes a connection for complete that
/// something has interrupted.
#[derive(Debug)]
pub(super) struct End {
    stream: TcpStream,
    is_over: bool,
}

impl End {
    pub(super) fn new(stream: TcpStream) -> Self {
        // Only a hint to the kernel.
        let _ = stream.set_nodelay(true);
        Self { stream, is_over: false }
    }

    /// Waits for bytes and gives them to `take`. `None` is that there will be no more.
    pub(super) async fn read<T>(&self, mut take: impl FnMut(&[u8]) -> T) -> io::Result<Option<T>> {
        loop {
            self.stream.readable().await?;
            let read = BUFFER.with_borrow_mut(|buffer| match self.read_now(buffer)? {
                Some(0) => io::Result::Ok(Some(None)),
                Some(length) => Ok(Some(Some(take(&buffer[..length])))),
                None => Ok(None),
            })?;
            if let Some(read) = read {
                return Ok(read);
            }
        }
    }

    /// Reads what is there. `None` is that nothing is.
    fn read_now(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        let mut read = None;
        let asked = self.stream.try_io(Interest::READABLE, || {
            let length = rustix::io::read(&self.stream, &mut *buffer)?;
            read = Some(length);
            // There was no more. The kernel tells of what comes later, so the next read need not find out.
            if (1..buffer.len()).contains(&length) { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
        });
        match asked {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            _ => Ok(read),
        }
    }

    /// Writes what the socket takes at once. Returns the rest.
    pub(super) fn write_now<'a>(&self, mut bytes: &'a [u8]) -> io::Result<&'a [u8]> {
        while !bytes.is_empty() {
            match self.stream.try_write(bytes) {
                Ok(written) => bytes = &bytes[written..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    /// Writes all of it.
    pub(super) async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_while(bytes, || true).await.map(drop)
    }

    /// Writes all of it, unless it may not go on. This is asked before each write. Returns whether all was written.
    pub(super) async fn write_while(&self, mut bytes: &[u8], may_go_on: impl Fn() -> bool) -> io::Result<bool> {
        loop {
            if !may_go_on() {
                return Ok(false);
            }
            bytes = self.write_now(bytes)?;
            if bytes.is_empty() {
                return Ok(true);
            }
            self.stream.writable().await?;
        }
    }

    /// Tells the other end that there will be no more.
    pub(super) fn finish(&self) {
        // If the connection is gone, the next read tells.
        let _ = rustix::net::shutdown(&self.stream, rustix::net::Shutdown::Write);
    }

    /// Closes it without a reset: both ends have said all.
    pub(super) fn close(mut self) {
        self.is_over = true;
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.is_over {
            // The kernel resets a connection that is closed with this setting.
            let _ = set_socket_linger(&self.stream, Some(Duration::ZERO));
        }
    }
}
