//! A client of HTTP that shows everything, and sends what no well-behaved client would.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream that bytes go over.
pub trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// A connection on which several requests can be sent.
pub struct HttpClient {
    stream: Box<dyn Stream>,
    /// What was read and belongs to the next answer.
    rest: Vec<u8>,
}

/// An answer.
#[derive(Clone, Debug)]
pub struct HttpAnswer {
    /// The status code.
    pub status: u16,
    /// Names in lower case, with their values.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl HttpAnswer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("no JSON, status {}: {}", self.status, self.text()))
    }

    /// The body as JSON, if the request was done.
    pub fn done(&self) -> Result<Value> {
        match self.status {
            200 => self.json(),
            status => bail!("status {status}: {}", self.text()),
        }
    }
}

impl HttpClient {
    /// Over a Unix socket.
    pub fn unix(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| format!("cannot connect to {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self::over(stream))
    }

    /// Over TCP, from the calling thread's network namespace.
    pub fn tcp(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        Ok(Self::over(stream))
    }

    /// Over any stream.
    pub fn over(stream: impl Stream + 'static) -> Self {
        Self { stream: Box::new(stream), rest: Vec::new() }
    }

    /// Sends a request with this body and these headers, beside those that each request has.
    pub fn request(&mut self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<HttpAnswer> {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += "Host: localhost\r\n";
        }
        headers.iter().for_each(|(name, value)| head += &format!("{name}: {value}\r\n"));
        if !body.is_empty() || method == "POST" {
            head += &format!("Content-Length: {}\r\n", body.len());
        }
        self.send(&[head.as_bytes(), b"\r\n", body].concat())?;
        self.answer(method == "HEAD")
    }

    /// Looks.
    pub fn get(&mut self, path: &str) -> Result<HttpAnswer> {
        self.request("GET", path, &[], b"")
    }

    /// Posts JSON.
    pub fn post(&mut self, path: &str, body: &Value) -> Result<HttpAnswer> {
        self.request("POST", path, &[("Content-Type", "application/json")], body.to_string().as_bytes())
    }

    /// Sends these bytes.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).and_then(|()| self.stream.flush()).context("cannot send")
    }

    /// Reads an answer.
    pub fn answer(&mut self, is_head: bool) -> Result<HttpAnswer> {
        let mut answer = self.head()?;
        let length = answer.header("content-length").map(str::parse::<usize>).transpose()?;
        answer.body = match length {
            _ if is_head || answer.status == 204 => Vec::new(),
            Some(length) => {
                while self.rest.len() < length {
                    self.read_more()?;
                }
                self.rest.drain(..length).collect()
            }
            None if answer.header("transfer-encoding") == Some("chunked") => {
                let mut body = Vec::new();
                while let Some(chunk) = self.chunk()? {
                    body.extend(chunk);
                }
                body
            }
            None => {
                while self.read_more().is_ok() {}
                std::mem::take(&mut self.rest)
            }
        };
        Ok(answer)
    }

    /// Reads the head of an answer.
    pub fn head(&mut self) -> Result<HttpAnswer> {
        let end = loop {
            match self.rest.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                Some(end) => break end,
                None => self.read_more()?,
            }
        };
        let head: Vec<u8> = self.rest.drain(..end + 4).collect();
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)?.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(':'));
        let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned())).collect();
        Ok(HttpAnswer { status: status.with_context(|| format!("no status: {head}"))?, headers, body: Vec::new() })
    }

    /// Reads a chunk of a chunked answer; `None` is its end.
    pub fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let end = loop {
            match self.rest.windows(2).position(|bytes| bytes == b"\r\n") {
                Some(end) => break end,
                None => self.read_more()?,
            }
        };
        let length = usize::from_str_radix(std::str::from_utf8(&self.rest[..end])?.trim(), 16)?;
        while self.rest.len() < end + 2 + length + 2 {
            self.read_more()?;
        }
        let chunk = self.rest[end + 2..end + 2 + length].to_vec();
        self.rest.drain(..end + 2 + length + 2);
        Ok((length > 0).then_some(chunk))
    }

    fn read_more(&mut self) -> Result<()> {
        let mut buffer = [0; 16384];
        match self.stream.read(&mut buffer).context("cannot read an answer")? {
            0 => bail!("the connection was closed"),
            length => self.rest.extend_from_slice(&buffer[..length]),
        }
        Ok(())
    }
}

/// Server-sent events.
pub struct HttpEvents {
    client: HttpClient,
    text: String,
}

impl HttpEvents {
    /// Listens at `path`.
    pub fn listen(mut client: HttpClient, path: &str) -> Result<Self> {
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes())?;
        let head = client.head()?;
        match head.header("content-type") {
            Some("text/event-stream") if head.status == 200 => Ok(Self { client, text: String::new() }),
            _ => bail!("no events: {head:?}"),
        }
    }

    /// The next event: its name and its data.
    pub fn next_event(&mut self) -> Result<(String, Value)> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let line = |key: &str| event.lines().find_map(|line| line.strip_prefix(key)).map(str::to_owned);
                let found = line("event: ").zip(line("data: "));
                self.text = rest.to_owned();
                if let Some((name, data)) = found {
                    return Ok((name, serde_json::from_str(&data)?));
                }
            }
            let chunk = self.client.chunk()?.context("the events have ended")?;
            self.text += std::str::from_utf8(&chunk)?;
        }
        bail!("no event has come, only signs of life")
    }

    /// The next event of this name, which comes soon.
    pub fn next_of(&mut self, name: &str) -> Result<Value> {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            match self.next_event()? {
                (found, data) if found == name => return Ok(data),
                _ => {}
            }
        }
        bail!("no event {name} has come")
    }
}
