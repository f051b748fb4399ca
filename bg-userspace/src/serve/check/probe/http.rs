//! Whether an HTTP request is answered as expected. HTTP/1.1, with or without TLS; redirections are answers, not followed.

use std::net::SocketAddr;

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    body::{Bytes, Incoming},
    client::conn::http1,
    header,
};
use hyper_util::rt::TokioIo;
use regex_lite::Regex;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{door::Door, tls::Tls, why::Why};
use crate::config::model::{HttpCheck, StatusRanges};

/// How much of a body is read to find what is expected in it.
const BODY: usize = 64 * 1024;

/// The request, and what is expected of the answer.
#[derive(Debug)]
pub(super) struct Request {
    path: String,
    host: String,
    tls: Option<Tls>,
    status: StatusRanges,
    body: Option<Regex>,
}

impl Request {
    pub(super) fn new(check: &HttpCheck, to: SocketAddr) -> Self {
        Self {
            path: check.path.clone(),
            host: check.host.clone().unwrap_or_else(|| to.to_string()),
            tls: check.tls.then(|| Tls::new(check.host.as_deref(), to.ip(), b"http/1.1")),
            status: check.expect_status.clone(),
            // It was compiled when the configuration was read.
            body: check.expect_body.as_deref().and_then(|body| Regex::new(body).ok()),
        }
    }

    pub(super) async fn check(&self, door: &Door) -> Result<(), Why> {
        let (stream, _registered) = door.connect().await?;
        match &self.tls {
            Some(tls) => self.ask(tls.open(stream).await?).await,
            None => self.ask(stream).await,
        }
    }

    async fn ask(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<(), Why> {
        let broken = |error: hyper::Error| Why::new(format_args!("no HTTP answer: {}", innermost(&error)));
        let (mut sender, connection) =
            http1::handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await.map_err(broken)?;
        let request = hyper::Request::get(&self.path)
            .header(header::HOST, &self.host)
            .header(header::USER_AGENT, concat!("bgctl/", env!("CARGO_PKG_VERSION")))
            .header(header::CONNECTION, "close")
            .body(Empty::new());
        let request = request.map_err(|error| Why::new(format_args!("no such request: {error}")))?;
        let answer = async {
            let answer = sender.send_request(request).await.map_err(broken)?;
            let status = answer.status();
            if !self.status.contains(status.as_u16()) {
                return Err(Why::new(format_args!("answered with status {status}")));
            }
            match &self.body {
                Some(expected) => has(answer.into_body(), expected).await,
                None => Ok(()),
            }
        };
        // One task drives both. If the connection ends first, the answer says why.
        let mut connection = std::pin::pin!(connection);
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            checked = &mut answer => checked,
            _ = &mut connection => answer.await,
        }
    }
}

/// The cause of an error that people understand.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

async fn has(mut body: Incoming, expected: &Regex) -> Result<(), Why> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => read.extend(frame.into_data().unwrap_or_default()),
            Err(error) => return Err(Why::new(format_args!("the body ends early: {error}"))),
        }
        if read.len() >= BODY {
            // What is longer is not looked at.
            read.truncate(BODY);
            break;
        }
    }
    if expected.is_match(&String::from_utf8_lossy(&read)) {
        Ok(())
    } else {
        Err(Why::new(format_args!("the body does not match {:?}", expected.as_str())))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use super::*;

    /// Answers each connection with these bytes. Returns its address, and what was asked first.
    fn server(answer: &'static [u8]) -> (SocketAddr, std::sync::mpsc::Receiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 1024];
                let read = stream.read(&mut request).unwrap();
                let _ = tell.send(String::from_utf8_lossy(&request[..read]).into_owned());
                let _ = stream.write_all(answer);
            }
        });
        (address, asked)
    }

    fn check() -> HttpCheck {
        HttpCheck {
            path: "/healthz?deep=1".to_owned(),
            host: Some("shop.example".to_owned()),
            expect_status: StatusRanges::ok(),
            expect_body: None,
            tls: false,
        }
    }

    async fn outcome(answer: &'static [u8], check: &HttpCheck) -> String {
        let (address, _asked) = server(answer);
        match Request::new(check, address).check(&Door::own(address)).await {
            Ok(()) => "passed".to_owned(),
            Err(why) => why.to_string(),
        }
    }

    #[tokio::test]
    async fn it_asks_what_is_configured() {
        let (address, asked) = server(b"HTTP/1.1 204 No Content\r\n\r\n");
        assert_eq!(Request::new(&check(), address).check(&Door::own(address)).await, Ok(()));
        let asked = asked.recv().unwrap().to_lowercase();
        assert!(asked.starts_with("get /healthz?deep=1 http/1.1\r\n"), "{asked}");
        assert!(asked.contains("\r\nhost: shop.example\r\n") && asked.contains("\r\nconnection: close\r\n"), "{asked}");
    }

    #[tokio::test]
    async fn status_and_body_decide() {
        let ok = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nstatus=up";
        assert_eq!(outcome(ok, &check()).await, "passed");
        assert_eq!(outcome(b"HTTP/1.0 302 Found\r\nLocation: /x\r\n\r\n", &check()).await, "passed");
        let error = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(outcome(error, &check()).await, "answered with status 500 Internal Server Error");
        let matches = HttpCheck { expect_body: Some("status=(up|ok)$".to_owned()), ..check() };
        assert_eq!(outcome(ok, &matches).await, "passed");
        let other = HttpCheck { expect_body: Some("down".to_owned()), ..check() };
        assert_eq!(outcome(ok, &other).await, "the body does not match \"down\"");
        let cut = b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nstatus=up";
        assert!(outcome(cut, &matches).await.starts_with("the body ends early"));
    }

    #[tokio::test]
    async fn the_first_64_kib_of_a_body_are_looked_at_and_no_more() {
        let finds = async |at: usize| {
            let mut body = vec![b'.'; 300_000];
            body[at..at + 6].copy_from_slice(b"needle");
            let mut answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len()).into_bytes();
            answer.extend(body);
            outcome(answer.leak(), &HttpCheck { expect_body: Some("needle".to_owned()), ..check() }).await == "passed"
        };
        for at in [0, 50_000, 60_000, 65_000, BODY - 6] {
            assert!(finds(at).await, "at {at}");
        }
        assert!(!finds(BODY - 5).await && !finds(200_000).await);
    }

    #[test]
    fn each_path_that_the_configuration_may_have_can_be_asked_for() {
        for char in (0..128).map(char::from) {
            for path in [format!("/{char}"), format!("/?{char}")] {
                if crate::config::is_path(&path) {
                    let request = hyper::Request::get(&path).body(()).unwrap();
                    assert_eq!(request.uri().path_and_query().unwrap().as_str(), path);
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_no_http_fails() {
        for answer in [&b""[..], b"220 mail ESMTP\r\n", b"HTTP/1.1 200"] {
            let why = outcome(answer, &check()).await;
            assert!(why.starts_with("no HTTP answer"), "{why}");
        }
    }
}
