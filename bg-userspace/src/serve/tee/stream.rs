//! One end of a connection: reading and writing without a buffer of its own, and how it ends.

use std::{cell::RefCell, io, time::Duration};

use rustix::net::sockopt::set_socket_linger;
use tokio::net::TcpStream;

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
            let read = BUFFER.with_borrow_mut(|buffer| match self.stream.try_read(buffer) {
                Ok(0) => Ok(Some(None)),
                Ok(length) => Ok(Some(Some(take(&buffer[..length])))),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
                Err(error) => Err(error),
            })?;
            if let Some(read) = read {
                return Ok(read);
            }
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
    pub(super) async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        loop {
            bytes = self.write_now(bytes)?;
            if bytes.is_empty() {
                return Ok(());
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
