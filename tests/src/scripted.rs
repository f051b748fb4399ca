//! An HTTP server that does what it is told: answers well, answers with an error, answers late, or not at all.

use crate::{
    topology::Backend,
    worker::{Stop, Worker},
};
use anyhow::Result;
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};

/// What a [`Scripted`] does with a request.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answers {
    /// 200, and the body `well`.
    Well,
    /// 500.
    Error,
    /// 200, and the body `none`.
    OtherBody,
    /// 200, after a second.
    Late,
    /// Nothing.
    Never,
    /// The answer begins in time, and goes on byte by byte.
    Dripping,
}

/// The server. Dropping it ends it.
#[derive(Debug)]
pub struct Scripted {
    answers: Arc<AtomicU8>,
    _worker: Worker,
}

impl Scripted {
    /// Starts it on an address of the backend. It answers well.
    pub fn start(backend: &Backend, address: SocketAddr) -> Result<Self> {
        let answers = Arc::new(AtomicU8::new(Answers::Well as u8));
        let told = answers.clone();
        let listener = backend.namespace.enter(|| std::net::TcpListener::bind(address))??;
        listener.set_nonblocking(true)?;
        let worker = Worker::spawn(&backend.namespace, async move |mut stop: Stop| {
            let listener = TcpListener::from_std(listener)?;
            let serve = async {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let answers = told.load(Ordering::Relaxed);
                    tokio::spawn(async move {
                        let mut request = [0; 1024];
                        let _ = stream.read(&mut request).await;
                        let ok = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n";
                        let text = match answers {
                            n if n == Answers::Error as u8 => {
                                "HTTP/1.1 500 Error\r\nContent-Length: 0\r\n\r\n".to_owned()
                            }
                            n if n == Answers::OtherBody as u8 => format!("{ok}none"),
                            _ => format!("{ok}well"),
                        };
                        if answers == Answers::Late as u8 {
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        } else if answers == Answers::Never as u8 {
                            tokio::time::sleep(Duration::from_secs(30)).await;
                        } else if answers == Answers::Dripping as u8 {
                            for byte in text.bytes() {
                                let _ = stream.write_all(&[byte]).await;
                                tokio::time::sleep(Duration::from_millis(20)).await;
                            }
                            return;
                        }
                        let _ = stream.write_all(text.as_bytes()).await;
                    });
                }
            };
            tokio::select! {
                () = serve => {}
                () = stop.wait() => {}
            }
            Ok(())
        })?;
        Ok(Self { answers, _worker: worker })
    }

    /// What it does from now on.
    pub fn answer(&self, answers: Answers) {
        self.answers.store(answers as u8, Ordering::Relaxed);
    }
}
