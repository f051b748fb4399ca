//! A terminal for programs that take the whole of it: tmux, without anybody in front of it.

use crate::{
    command::{output, run},
    netns::Namespace,
};
use anyhow::{Context, Result, bail};
use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

/// A terminal in a namespace, with a shell in it. Dropping it ends both.
#[derive(Debug)]
pub struct Terminal {
    socket: PathBuf,
    shell: u32,
    /// How often the shell was asked how the terminal is.
    rests: AtomicU32,
}

impl Terminal {
    const PATIENCE: Duration = Duration::from_secs(10);

    /// Starts a shell in a window of this size. `dir` gets the terminal's socket.
    pub fn start(namespace: &Namespace, dir: &Path, (width, height): (u16, u16)) -> Result<Self> {
        let socket = dir.join("tmux");
        let (width, height) = (width.to_string(), height.to_string());
        let mut start = namespace.command("tmux");
        start.args(["-u", "-f", "/dev/null", "-S"]).arg(&socket);
        start.args(["new-session", "-d", "-x", &width, "-y", &height, "exec env PS1='at rest> ' sh"]);
        // Without these, the shell would be that of the user who runs the tests.
        start.env_remove("TMUX").env("SHELL", "/bin/sh").env("TERM", "xterm-256color").env_remove("NO_COLOR");
        output(&mut start).context("tmux, which `cargo xtask setup` installs")?;
        let mut terminal = Self { socket, shell: 0, rests: AtomicU32::new(0) };
        terminal.shell = terminal.tmux(&["list-panes", "-F", "#{pane_pid}"])?.trim().parse()?;
        terminal.wait_for("the shell", |text| text.contains("at rest>"))?;
        Ok(terminal)
    }

    /// Presses keys, by the names of tmux: letters, `Enter`, `Down`, `C-c`.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Types a line into the shell.
    pub fn type_line(&self, line: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", line])?;
        self.press(&["Enter"])
    }

    /// Gives the window another size.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        self.tmux(&["resize-window", "-x", &width.to_string(), "-y", &height.to_string()]).map(drop)
    }

    /// What can be read in the window.
    pub fn text(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same, with escape sequences for colours.
    pub fn styled_text(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-e", "-p"])
    }

    /// Waits until what can be read is as expected, and returns it.
    pub fn wait_for(&self, what: &str, is_there: impl Fn(&str) -> bool) -> Result<String> {
        self.wait_within(Self::PATIENCE, what, is_there)
    }

    /// The same, at most for this long.
    pub fn wait_within(&self, patience: Duration, what: &str, is_there: impl Fn(&str) -> bool) -> Result<String> {
        let end = Instant::now() + patience;
        loop {
            let text = self.text()?;
            if is_there(&text) {
                return Ok(text);
            }
            if Instant::now() >= end {
                bail!("expected {what}, got after {patience:?}:\n{text}");
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process that the shell has started.
    pub fn program(&self) -> Result<u32> {
        let path = format!("/proc/{0}/task/{0}/children", self.shell);
        let children = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        children.split_whitespace().next().context("the shell runs nothing")?.parse().context("no process id")
    }

    /// Waits until the shell asks for the next line, and proves that the terminal is as it was: what was to be read before is there again,
    /// the cursor can be seen, and the terminal echoes, line by line. Returns the exit code of the program.
    pub fn at_rest(&self, before: &str) -> Result<i32> {
        self.wait_for("the shell", |text| text.trim_end().ends_with("at rest>"))?;
        let all = self.tmux(&["capture-pane", "-p", "-S", "-"])?;
        if !all.contains(before) {
            bail!("expected {before:?} on the normal screen, got\n{all}");
        }
        let cursor = self.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"])?;
        if cursor.trim() != "0 1" {
            bail!("expected the normal screen and a cursor (0 1), got {cursor}");
        }
        let number = self.rests.fetch_add(1, Ordering::Relaxed);
        self.type_line(&format!("echo \"code{number}=$?\"; stty -a; echo \"end\"{number}"))?;
        let text = self.wait_for("the settings", |text| text.contains(&format!("\nend{number}")))?;
        let text = text.rsplit(&format!("\ncode{number}=")).next().unwrap_or_default();
        for setting in ["icanon", "echo", "isig", "opost", "icrnl"] {
            if !text.split_whitespace().any(|word| word == setting) {
                bail!("expected the setting {setting}, got\n{text}");
            }
        }
        text.split_whitespace().next().unwrap_or_default().parse().with_context(|| format!("no exit code in {text}"))
    }

    fn tmux(&self, words: &[&str]) -> Result<String> {
        output(Command::new("tmux").arg("-u").arg("-S").arg(&self.socket).args(words))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // An error means that it is gone: the shell has ended, or its namespace.
        let _ = run(&format!("tmux -S {} kill-server", self.socket.display()));
    }
}
