//! Health checks of backends, and what follows for the deployment.

use std::{fmt, num::NonZeroU32, ops::RangeInclusive, time::Duration};

/// How a backend is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What is asked.
    pub kind: CheckKind,
    /// The port that is asked; `None` is the backend's own.
    pub port: Option<u16>,
    /// The time from the begin of one check to the begin of the next.
    pub interval: Duration,
    /// How long an answer may take, at most [`Self::interval`].
    pub timeout: Duration,
    /// How many checks in a row pass before a backend that was down is up, at least one.
    pub rise: u32,
    /// How many checks in a row fail before a backend that was up is down, at least one.
    pub fall: u32,
    /// What happens to new flows when every backend of a colour is down.
    pub all_down: AllDown,
    /// The time in which a backend that has returned gets from nothing to its whole weight; `None` is at once.
    pub slow_start: Option<Duration>,
}

impl HealthCheck {
    /// A check with the usual times.
    pub fn new(kind: CheckKind) -> Self {
        Self {
            kind,
            port: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 3,
            all_down: AllDown::Open,
            slow_start: None,
        }
    }
}

/// What a health check asks a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CheckKind {
    /// Whether a connection can be opened.
    Tcp,
    /// Whether a request is answered as expected.
    Http(HttpCheck),
    /// What `grpc.health.v1.Health/Check` answers.
    Grpc {
        /// The name of the service that is asked for; empty for the server as a whole.
        service: String,
        /// Whether over TLS.
        tls: bool,
    },
    /// Whether a command exits with 0.
    Exec {
        /// The program and its arguments.
        command: Vec<String>,
    },
}

impl CheckKind {
    /// Its name in the configuration.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http(HttpCheck { tls: false, .. }) => "http",
            Self::Http(HttpCheck { tls: true, .. }) => "https",
            Self::Grpc { .. } => "grpc",
            Self::Exec { .. } => "exec",
        }
    }
}

/// A request and the answers that pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpCheck {
    /// Begins with a slash.
    pub path: String,
    /// The `Host` of the request, and the name that TLS asks for; `None` is the backend's address.
    pub host: Option<String>,
    /// The status codes that pass.
    pub expect_status: StatusRanges,
    /// A regular expression, in the syntax of the crate `regex-lite`, that has to match somewhere in the body.
    pub expect_body: Option<String>,
    /// Whether over TLS.
    pub tls: bool,
}

/// HTTP status codes, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusRanges(Vec<RangeInclusive<u16>>);

impl StatusRanges {
    /// From 200 to 399: success, and redirections, which are not followed.
    pub fn ok() -> Self {
        Self(vec![200..=399])
    }

    /// Of a text such as `200-299,304`. `None` if it is no such text.
    pub fn parse(text: &str) -> Option<Self> {
        let code = |text: &str| {
            let is_code = text.len() == 3 && text.bytes().all(|digit| digit.is_ascii_digit());
            text.parse().ok().filter(|code| is_code && (100..=599).contains(code))
        };
        let range = |text: &str| {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let range = code(first.trim())?..=code(last.trim())?;
            (!range.is_empty()).then_some(range)
        };
        text.split(',').map(range).collect::<Option<Vec<_>>>().map(Self)
    }

    /// Whether a status code is among them.
    pub fn contains(&self, status: u16) -> bool {
        self.0.iter().any(|range| range.contains(&status))
    }
}

impl fmt::Display for StatusRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, range) in self.0.iter().enumerate() {
            f.write_str(if index > 0 { "," } else { "" })?;
            write!(f, "{}", range.start())?;
            if range.start() != range.end() {
                write!(f, "-{}", range.end())?;
            }
        }
        Ok(())
    }
}

/// What happens to new flows of a colour when every one of its backends is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AllDown {
    /// They go to all backends as if all were up, because checks that all fail may themselves be what is broken.
    #[default]
    Open,
    /// They are refused and counted.
    Refuse,
}

impl AllDown {
    /// Both, in the order of the documentation.
    pub const ALL: [Self; 2] = [Self::Open, Self::Refuse];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Refuse => "refuse",
        }
    }
}

/// When the controller switches by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// Whether it switches to the idle colour when the live one has too few healthy backends and the idle one has enough.
    pub to_idle: bool,
    /// How many healthy backends are enough.
    pub min_healthy: MinHealthy,
    /// The time after a failover in which the controller makes no other one.
    pub hold_off: Duration,
}

impl Default for Failover {
    /// Never by itself.
    fn default() -> Self {
        Self { to_idle: false, min_healthy: MinHealthy::Percent(50), hold_off: Duration::from_secs(5 * 60) }
    }
}

/// The least number of healthy backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinHealthy {
    /// This percentage of the backends, from 1 to 100.
    Percent(u8),
    /// This many backends.
    Count(NonZeroU32),
}

impl fmt::Display for MinHealthy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Percent(percent) => write!(f, "{percent}%"),
            Self::Count(count) => write!(f, "{count}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_codes_are_numbers_and_ranges() {
        for (text, contains, not) in [
            ("200-399", &[200, 301, 399][..], &[199, 400][..]),
            ("204", &[204], &[200, 203, 205]),
            ("200-299, 304", &[200, 304], &[303, 305]),
        ] {
            let ranges = StatusRanges::parse(text).unwrap();
            assert!(contains.iter().all(|status| ranges.contains(*status)), "{text}");
            assert!(!not.iter().any(|status| ranges.contains(*status)), "{text}");
            assert_eq!(StatusRanges::parse(&ranges.to_string()).unwrap(), ranges);
        }
        for text in ["", "200-", "399-200", "2xx", "+200", "99", "600", "200,", "0200", "1200"] {
            assert_eq!(StatusRanges::parse(text), None, "{text}");
        }
    }
}
