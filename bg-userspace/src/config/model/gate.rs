//! Gates: what has to pass before a switch, or while it waits for its confirmation.

use std::{fmt, time::Duration};

use super::health::StatusRanges;

/// A gate of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gate {
    /// When it is asked.
    pub when: When,
    /// What is asked.
    pub kind: GateKind,
    /// The time from the end of one attempt to the begin of the next, after the switch. Before it there is one attempt.
    pub interval: Duration,
    /// How long an attempt may take. One that takes longer has failed.
    pub timeout: Duration,
}

impl Gate {
    /// The default of [`Self::interval`].
    pub const INTERVAL: Duration = Duration::from_secs(10);
    /// The default of [`Self::timeout`].
    pub const TIMEOUT: Duration = Duration::from_secs(30);
}

impl fmt::Display for Gate {
    /// What a message calls it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            GateKind::Exec { command } => write!(f, "exec {}", short(&command.join(" "))),
            GateKind::Http { url, .. } => write!(f, "http {}", without_password(url)),
            GateKind::Prometheus { query, .. } => write!(f, "prometheus {}", short(query)),
        }
    }
}

/// When a gate is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Before the switch: if it fails, there is none.
    Before,
    /// While the switch waits for its confirmation: if it fails, the switch is taken back.
    After,
}

impl When {
    /// Both, in their order in time.
    pub const ALL: [Self; 2] = [Self::Before, Self::After];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
        }
    }
}

/// What a gate asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GateKind {
    /// Whether a command exits with 0.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
    },
    /// Whether a GET is answered as expected.
    Http {
        /// `http` or `https`.
        url: String,
        /// The status codes that pass; `None` is 200 to 299.
        expect_status: Option<StatusRanges>,
    },
    /// Whether the value of a query is within bounds, of which there is at least one.
    Prometheus {
        /// The server, below which `/api/v1/query` is asked.
        url: String,
        /// In PromQL.
        query: String,
        /// The largest value that passes.
        max: Option<Bound>,
        /// The smallest value that passes.
        min: Option<Bound>,
    },
}

impl GateKind {
    /// Its name in the configuration.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Exec { .. } => "exec",
            Self::Http { .. } => "http",
            Self::Prometheus { .. } => "prometheus",
        }
    }
}

/// A finite number.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
pub struct Bound(f64);

/// There is no NaN among them.
impl Eq for Bound {}

impl Bound {
    /// `None` if the number is not finite.
    pub fn new(number: f64) -> Option<Self> {
        number.is_finite().then_some(Self(number))
    }

    /// The number.
    pub fn number(self) -> f64 {
        self.0
    }
}

impl fmt::Display for Bound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A line that messages can have in their middle.
fn short(text: &str) -> String {
    const MOST: usize = 80;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

/// The URL as messages and the history have it.
fn without_password(url: &str) -> String {
    let parts = url.split_once("://").and_then(|(scheme, rest)| {
        let host = rest.split(['/', '?', '#']).next()?;
        let (user, _) = host.rsplit_once('@')?;
        Some(format!("{scheme}://***{}", &rest[user.len()..]))
    });
    parts.unwrap_or_else(|| url.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_named_by_its_beginning() {
        assert_eq!(short("sh -c\n  true\t1"), "sh -c true 1");
        assert_eq!(short(&"é".repeat(81)), format!("{}...", "é".repeat(80)));
        assert_eq!(short(&"é".repeat(80)), "é".repeat(80));
    }

    #[test]
    fn no_message_has_a_password() {
        assert_eq!(without_password("https://ci:secret@shop.example/x@y"), "https://***@shop.example/x@y");
        assert_eq!(without_password("https://shop.example/x@y"), "https://shop.example/x@y");
    }
}
