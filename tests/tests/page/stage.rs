//! A lab with a controller that serves the page, and a browser on the same host.

use crate::browser::Browser;
use anyhow::{Context, Result};
use bg_tests::{
    Controller, NewFlows, Ready, Setting, Worker, address,
    config::{shop, udp_vip},
};
use std::{
    fmt::Write as _,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

pub(crate) const PAGE: &str = "http://127.0.0.1:7470/";

/// Keeps what the page sends.
const SPY: &str = "window.sent = []; const real = window.fetch; window.fetch = (url, options = {}) => { \
                   if (options.method === 'POST') window.sent.push({ url: String(url), generation: options.headers['if-match'], \
                   body: JSON.parse(options.body) }); return real(url, options); };";

/// Texts that cannot be told well enough from what is behind them: less than 4.5 to 1, as WCAG 2 has it. Disabled buttons may.
pub(crate) const POOR_CONTRAST: &str = r"(() => {
    const parts = (colour) => { const all = colour.match(/[\d.]+/g).map(Number); return all.length < 4 ? [...all, 1] : all; };
    const light = (colour) => { const [r, g, b] = colour.map((part) => { const x = part / 255; return x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = (element) => { for (let at = element; at; at = at.parentElement) { const colour = parts(getComputedStyle(at).backgroundColor);
        if (colour[3] > 0.99) return colour; } return [255, 255, 255, 1]; };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const poor = [];
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        const text = walker.currentNode.data.trim();
        if (!text || !element.checkVisibility() || element.closest('button:disabled, [aria-disabled=true], template, noscript, script')) continue;
        const [a, b] = [light(parts(getComputedStyle(element).color)), light(behind(element))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < 4.5) poor.push(`${text}: ${contrast.toFixed(2)}`);
    }
    return poor;
})()";

/// A part of a deployment's card.
pub(crate) fn card(deployment: &str, part: &str) -> String {
    format!("[data-deployment=\"{deployment}\"] {part}")
}

/// Where pictures are kept.
pub(crate) fn pictures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/page")
}

/// The lab, the controller and the browser.
pub(crate) struct Stage {
    pub(crate) browser: Browser,
    controller: Option<Controller>,
    pub(crate) ready: Ready,
}

impl Stage {
    /// Sets it up, with these keys in the deployment, and with `tokens` that are needed or none.
    pub(crate) fn set(deployment_keys: &str, tokens: &str) -> Result<Self> {
        let ready = Setting::Native.ready_with(|lab, mode| {
            let dir = lab.sandbox.dir();
            let mut config = shop(lab, mode, deployment_keys);
            write!(
                config,
                "\n[serve]\nsocket = \"{}\"\nlisten = \"127.0.0.1:7470\"\n",
                dir.join("api.sock").display()
            )?;
            if !tokens.is_empty() {
                let file = dir.join(tokens);
                fs::write(&file, format!("eve viewer {}\n", sha256("look")?))?;
                fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
                writeln!(config, "tokens = \"{}\"", file.display())?;
            }
            Ok(config)
        })?;
        let controller = Some(Controller::start(&ready.bgctl)?);
        let browser = Browser::start(&ready.lab.edge, ready.lab.sandbox.dir())?;
        browser.run_first(SPY)?;
        Ok(Self { browser, controller, ready })
    }

    /// Opens the page, and waits until it has all.
    pub(crate) fn open(&self) -> Result<()> {
        self.browser.open(PAGE)?;
        self.browser.wait_for("a connection", "document.querySelector('#connection').dataset.state === 'live'")?;
        self.browser.wait_for("the deployments", "document.querySelectorAll('.card').length === 2")
    }

    pub(crate) fn controller(&self) -> Result<&Controller> {
        self.controller.as_ref().context("no controller runs")
    }

    pub(crate) fn end_controller(&mut self) -> Result<()> {
        self.controller.take().context("no controller runs")?.end(libc::SIGKILL).map(drop)
    }

    pub(crate) fn start_controller(&mut self) -> Result<()> {
        self.controller = Some(Controller::start(&self.ready.bgctl)?);
        Ok(())
    }

    /// Live colour, generation and phase of a deployment.
    pub(crate) fn state(&self, deployment: &str) -> Result<(String, u64, String)> {
        let status = self.ready.bgctl.deployment(deployment)?;
        let text = |key: &str| status[key].as_str().map(str::to_owned).context("no text");
        Ok((text("live")?, status["generation"].as_u64().context("no generation")?, text("phase")?))
    }

    /// Presses Tab until an expression is true.
    pub(crate) fn tab_to(&self, expression: &str) -> Result<()> {
        for _ in 0..60 {
            if self.browser.value(expression)? == true {
                return Ok(());
            }
            self.browser.press("Tab")?;
        }
        anyhow::bail!("Tab does not lead there: {expression}")
    }

    /// Opens flows of the shop until the guard is dropped.
    pub(crate) fn load(&self) -> Result<Worker> {
        let live = self.ready.live()?;
        let mut flows = NewFlows::new(udp_vip(address::VIP_V4), &[address::CLIENT_V4], 20_000..60_000);
        Worker::spawn(&self.ready.lab.client, async move |stop| {
            for nth in 0_u64.. {
                if stop.is_set() {
                    break;
                }
                flows.ask(&live)?;
                // More, then fewer, so that the plot has a shape.
                tokio::time::sleep(Duration::from_millis(10 + 10 * (nth / 50 % 5))).await;
            }
            Ok(())
        })
    }

    /// Has the second backend of green answer no connections.
    pub(crate) fn silence_one(&self) -> Result<()> {
        for line in [
            "add table inet silent",
            "add chain inet silent input { type filter hook input priority 0 ; }",
            "add rule inet silent input meta l4proto tcp drop",
        ] {
            self.ready.lab.backends[3].namespace.run(&format!("nft {line}"))?;
        }
        Ok(())
    }

    /// Applies a configuration with this many deployments.
    pub(crate) fn apply_many(&self, count: usize) -> Result<()> {
        let mut config = String::new();
        for nth in 0..count {
            write!(
                config,
                "[deployments.many-{nth}]\n[[deployments.many-{nth}.services]]\nname = \"web\"\nvip = \"203.0.113.{}:80\"\nprotocol = \"tcp\"\nmode = \"nat\"\n\
                 blue = [\"10.0.1.11:8080\", \"10.0.1.12:8080\"]\ngreen = [\"10.0.2.11:8080\"]\n\n",
                100 + nth
            )?;
        }
        self.ready.bgctl.apply(&config).map(drop)
    }
}

fn sha256(text: &str) -> Result<String> {
    let output = bg_tests::output(Command::new("sh").args(["-c", &format!("printf %s {text} | sha256sum")]))?;
    output.split_whitespace().next().map(str::to_owned).context("no hash")
}
