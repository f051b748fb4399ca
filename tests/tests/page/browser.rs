//! Debian's Chromium without a window, driven by its own protocol: mouse and keys are those that the browser gets from an operating system.

use anyhow::{Context, Result, bail};
use bg_tests::{Namespace, Process};
use serde_json::{Value, json};
use std::{
    cell::RefCell,
    fs::{self, File},
    net::TcpStream,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};
use tungstenite::{Message, WebSocket};

/// A browser with one page. Dropping it ends it.
pub(crate) struct Browser {
    connection: RefCell<Connection>,
    session: String,
    _process: Process,
}

struct Connection {
    socket: WebSocket<TcpStream>,
    last: u64,
    /// Exceptions, and what the console says of errors other than those of the network.
    complaints: Vec<String>,
}

impl Browser {
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Starts it in a namespace. `dir` gets its files.
    pub(crate) fn start(namespace: &Namespace, dir: &Path) -> Result<Self> {
        let profile = dir.join("chromium");
        fs::create_dir_all(&profile)?;
        let mut command = namespace.command("chromium");
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.args(["--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0"]);
        command.arg(format!("--user-data-dir={}", profile.display())).arg("about:blank").env("HOME", &profile);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(dir.join("chromium.log"))?);
        let mut process = Process::spawn(&mut command).context("chromium, which `cargo xtask setup` installs")?;
        let port = wait_for_port(&mut process, &profile.join("DevToolsActivePort"));
        let (port, path) = port.with_context(|| fs::read_to_string(dir.join("chromium.log")).unwrap_or_default())?;
        let stream = namespace.enter(|| TcpStream::connect(("127.0.0.1", port)))??;
        stream.set_read_timeout(Some(Self::PATIENCE))?;
        let (socket, _) = tungstenite::client(format!("ws://127.0.0.1:{port}{path}"), stream)?;
        let connection = RefCell::new(Connection { socket, last: 0, complaints: Vec::new() });
        let mut browser = Self { connection, session: String::new(), _process: process };
        let targets = browser.call("Target.getTargets", json!({}))?;
        let mut pages = targets["targetInfos"].as_array().into_iter().flatten().filter(|it| it["type"] == "page");
        let page = pages.next().context("chromium has no page")?["targetId"].clone();
        let attached = browser.call("Target.attachToTarget", json!({ "targetId": page, "flatten": true }))?;
        browser.session = attached["sessionId"].as_str().context("no session")?.to_owned();
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        browser.window(1200, 900, "light")?;
        Ok(browser)
    }

    /// Calls a method of the protocol.
    pub(crate) fn call(&self, method: &str, parameters: Value) -> Result<Value> {
        let mut connection = self.connection.borrow_mut();
        connection.last += 1;
        let id = connection.last;
        let mut call = json!({ "id": id, "method": method, "params": parameters });
        if !self.session.is_empty() {
            call["sessionId"] = self.session.as_str().into();
        }
        connection.socket.send(Message::text(call.to_string()))?;
        loop {
            let message = connection.socket.read().with_context(|| format!("{method}: no answer"))?;
            let Message::Text(text) = message else { continue };
            let answer: Value = serde_json::from_str(&text)?;
            if answer["id"] == id {
                if !answer["error"].is_null() {
                    bail!("{method}: {}", answer["error"]);
                }
                return Ok(answer["result"].clone());
            }
            connection.complaints.extend(complaint(&answer));
        }
    }

    /// Exceptions and errors so far, other than those of the network.
    pub(crate) fn complaints(&self) -> Vec<String> {
        self.connection.borrow().complaints.clone()
    }

    /// Has a script run before those of each page that is opened.
    pub(crate) fn run_first(&self, script: &str) -> Result<()> {
        self.call("Page.addScriptToEvaluateOnNewDocument", json!({ "source": script })).map(drop)
    }

    /// Opens an address.
    pub(crate) fn open(&self, url: &str) -> Result<()> {
        let opened = self.call("Page.navigate", json!({ "url": url }))?;
        if let Some(error) = opened["errorText"].as_str() {
            bail!("{url}: {error}");
        }
        Ok(())
    }

    /// The value of an expression in the page. A promise is waited for.
    pub(crate) fn value(&self, expression: &str) -> Result<Value> {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", parameters)?;
        if !answer["exceptionDetails"].is_null() {
            bail!("{expression}: {}", answer["exceptionDetails"]["exception"]["description"]);
        }
        Ok(answer["result"]["value"].clone())
    }

    /// The text of the first element that a selector finds.
    pub(crate) fn text(&self, selector: &str) -> Result<String> {
        let text = self.value(&format!("document.querySelector({}).innerText", json!(selector)))?;
        text.as_str().map(str::to_owned).with_context(|| format!("no text at {selector}"))
    }

    /// Waits until an expression is true.
    pub(crate) fn wait_for(&self, what: &str, expression: &str) -> Result<()> {
        let end = Instant::now() + Self::PATIENCE;
        // An exception may mean that it is not there yet.
        while !self.value(expression).is_ok_and(|value| value == true) {
            if Instant::now() > end {
                let text = self.text("body").unwrap_or_default();
                bail!("expected {what} ({expression}), got\n{text}\n{:?}", self.complaints());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Waits until the element that a selector finds has a text.
    pub(crate) fn wait_for_text(&self, selector: &str, text: &str) -> Result<()> {
        let expression = format!("document.querySelector({}).innerText.includes({})", json!(selector), json!(text));
        self.wait_for(&format!("{text:?} at {selector}"), &expression)
    }

    /// Clicks in the middle of an element, which something else must not cover.
    pub(crate) fn click(&self, selector: &str) -> Result<()> {
        let find = format!(
            "(() => {{ const it = document.querySelector({}); it.scrollIntoView({{ block: 'center' }}); \
             const {{ x, y, width, height }} = it.getBoundingClientRect(); const at = [x + width / 2, y + height / 2]; \
             const top = document.elementFromPoint(...at); return it.contains(top) && !it.disabled && it.ariaDisabled !== 'true' ? at : null; }})()",
            json!(selector)
        );
        let at = self.value(&find)?;
        let (Some(x), Some(y)) = (at[0].as_f64(), at[1].as_f64()) else {
            bail!("{selector} cannot be clicked: it is covered, disabled or not there");
        };
        for kind in ["mouseMoved", "mousePressed", "mouseReleased"] {
            let button = if kind == "mouseMoved" { "none" } else { "left" };
            let event = json!({ "type": kind, "x": x, "y": y, "button": button, "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event)?;
        }
        Ok(())
    }

    /// Presses a key.
    pub(crate) fn press(&self, key: &str) -> Result<()> {
        let (code, text) = match key {
            "Tab" => (9, None),
            "Enter" => (13, Some("\r")),
            "Escape" => (27, None),
            "ArrowDown" => (40, None),
            _ => bail!("the code of the key {key} is not known here"),
        };
        let mut event = json!({ "type": "keyDown", "key": key, "code": key, "windowsVirtualKeyCode": code });
        if let Some(text) = text {
            event["text"] = text.into();
        }
        self.call("Input.dispatchKeyEvent", event.clone())?;
        event["type"] = "keyUp".into();
        self.call("Input.dispatchKeyEvent", event).map(drop)
    }

    /// Types a text into what has the focus.
    pub(crate) fn type_text(&self, text: &str) -> Result<()> {
        self.call("Input.insertText", json!({ "text": text })).map(drop)
    }

    /// Gives the window a size, and the user the wish for light or dark.
    pub(crate) fn window(&self, width: u32, height: u32, scheme: &str) -> Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size)?;
        let wish = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", wish).map(drop)
    }

    /// Takes a picture.
    pub(crate) fn shoot(&self, file: &Path) -> Result<()> {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let octets = from_base64(picture["data"].as_str().context("no picture")?)?;
        fs::create_dir_all(file.parent().context("no directory")?)?;
        fs::write(file, octets).with_context(|| format!("cannot write {}", file.display()))
    }
}

/// The port and the path that chromium writes into its profile.
fn wait_for_port(process: &mut Process, file: &Path) -> Result<(u16, String)> {
    // Usually a second, but much more on a machine that compiles meanwhile.
    let end = Instant::now() + Duration::from_secs(90);
    loop {
        let text = fs::read_to_string(file).unwrap_or_default();
        if let Some((port, path)) = text.split_once('\n').filter(|(_, path)| !path.is_empty()) {
            return Ok((port.trim().parse()?, path.trim().to_owned()));
        }
        if let Some(status) = process.wait(Duration::ZERO)? {
            bail!("chromium has ended: {status}");
        }
        if Instant::now() > end {
            bail!("chromium has not written {} in 90 seconds", file.display());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn complaint(event: &Value) -> Option<String> {
    let parameters = &event["params"];
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(parameters["exceptionDetails"].to_string()),
        "Runtime.consoleAPICalled" if parameters["type"] == "error" => Some(parameters["args"].to_string()),
        "Log.entryAdded" => {
            let entry = &parameters["entry"];
            (entry["level"] == "error" && entry["source"] != "network").then(|| entry["text"].to_string())
        }
        _ => None,
    }
}

fn from_base64(text: &str) -> Result<Vec<u8>> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut octets = Vec::with_capacity(text.len() / 4 * 3);
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let mut bits = 0_u32;
        for digit in group {
            let value = DIGITS.iter().position(|known| known == digit).context("not base64")?;
            bits = bits << 6 | value as u32;
        }
        bits <<= 6 * (4 - group.len());
        octets.extend(&bits.to_be_bytes()[1..group.len()]);
    }
    Ok(octets)
}
