//! The file that lists the interfaces to attach to, for `bgctl attach --from`. bgctl.service uses it at boot.
//!
//! A line is a name, a pattern or a driver, optionally followed by a mode:
//!
//! ```text
//! # comment
//! eth0
//! enp*                native
//! driver=virtio_net   tc
//! ```
//!
//! Patterns and drivers match only Ethernet interfaces. A name matches any interface. If several lines match an
//! interface, the first one decides its mode. Each line has to match an interface.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{
    AttachMode,
    net::{self, ARPHRD_ETHER, Interface, NetError},
};

/// The interval at which the kernel is asked for new interfaces.
const POLL: Duration = Duration::from_millis(100);

/// The lines of a file of interfaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceList {
    lines: Vec<Line>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Line {
    /// The line without the mode.
    text: String,
    selector: Selector,
    mode: Option<AttachMode>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Selector {
    Name,
    Pattern(glob::Pattern),
    Driver(String),
}

/// The interfaces that a list matches at present.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selected {
    /// Their names, and their modes if the list has one.
    pub interfaces: Vec<(String, Option<AttachMode>)>,
    /// The lines that match no interface.
    pub missing: Vec<String>,
}

/// The error of a list of interfaces.
#[derive(Debug, thiserror::Error)]
pub enum InterfaceListError {
    /// The file could not be read.
    #[error("cannot read {}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A line is not of the form `NAME [MODE]`.
    #[error(
        "{}:{line}: expected an interface's name, a pattern such as `enp*`, or `driver=NAME`, optionally followed by a mode (auto, \
         native, generic or tc); got {got:?}",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// The number of the line, counted from 1.
        line: usize,
        /// The line.
        got: String,
    },
    /// The file has no line that names an interface.
    #[error("{} names no interface: write one per line, for example `eth0`", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

impl InterfaceList {
    /// Reads a list from a file.
    pub fn load(path: &Path) -> Result<Self, InterfaceListError> {
        let unreadable = |source| InterfaceListError::Unreadable { path: path.to_owned(), source };
        Self::parse(path, &fs::read_to_string(path).map_err(unreadable)?)
    }

    /// Reads a text, which errors call `path`.
    pub fn parse(path: &Path, text: &str) -> Result<Self, InterfaceListError> {
        let mut lines = Vec::new();
        for (index, written) in text.lines().enumerate() {
            let content = written.split('#').next().unwrap_or_default();
            if content.trim().is_empty() {
                continue;
            }
            lines.push(Line::parse(content).ok_or_else(|| InterfaceListError::Line {
                path: path.to_owned(),
                line: index + 1,
                got: written.to_owned(),
            })?);
        }
        if lines.is_empty() {
            return Err(InterfaceListError::Empty { path: path.to_owned() });
        }
        Ok(Self { lines })
    }

    /// Waits until every line matches an interface of the caller's network namespace, but at most for `patience`.
    pub fn wait(&self, patience: Duration) -> Result<Selected, NetError> {
        let start = Instant::now();
        loop {
            let selected = self.select(&net::interfaces()?);
            let waited = start.elapsed();
            if selected.missing.is_empty() || waited >= patience {
                return Ok(selected);
            }
            std::thread::sleep(POLL.min(patience - waited));
        }
    }

    fn select(&self, interfaces: &[Interface]) -> Selected {
        let mode_of = |interface: &Interface| self.lines.iter().find(|line| line.matches(interface));
        let is_missing = |line: &&Line| !interfaces.iter().any(|interface| line.matches(interface));
        Selected {
            interfaces: interfaces.iter().filter_map(|it| Some((it.name.clone(), mode_of(it)?.mode))).collect(),
            missing: self.lines.iter().filter(is_missing).map(|line| line.text.clone()).collect(),
        }
    }
}

impl Line {
    /// `None` if the line is not valid.
    fn parse(content: &str) -> Option<Self> {
        let mut words = content.split_whitespace();
        let text = words.next()?;
        let mode = match words.next() {
            None => None,
            Some("auto") => Some(AttachMode::Auto),
            Some("native") => Some(AttachMode::Native),
            Some("generic") => Some(AttachMode::Generic),
            Some("tc") => Some(AttachMode::Tc),
            Some(_) => return None,
        };
        if words.next().is_some() {
            return None;
        }
        let selector = match text.split_once('=') {
            Some(("driver", driver)) if !driver.is_empty() => Selector::Driver(driver.to_owned()),
            Some(_) => return None,
            None if text.contains(['*', '?', '[']) => Selector::Pattern(glob::Pattern::new(text).ok()?),
            None => Selector::Name,
        };
        Some(Self { text: text.to_owned(), selector, mode })
    }

    fn matches(&self, interface: &Interface) -> bool {
        let is_ethernet = interface.arphrd == ARPHRD_ETHER;
        match &self.selector {
            Selector::Name => interface.is_called(&self.text),
            Selector::Pattern(pattern) => is_ethernet && pattern.matches(&interface.name),
            Selector::Driver(driver) => is_ethernet && interface.driver.as_ref() == Some(driver),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::ARPHRD_LOOPBACK;

    fn parse(text: &str) -> Result<InterfaceList, String> {
        InterfaceList::parse(Path::new("interfaces"), text).map_err(|error| error.to_string())
    }

    fn interface(name: &str, driver: &str) -> Interface {
        Interface {
            name: name.to_owned(),
            arphrd: if name == "lo" { ARPHRD_LOOPBACK } else { ARPHRD_ETHER },
            driver: Some(driver.to_owned()),
            ..Interface::default()
        }
    }

    fn select(text: &str) -> Selected {
        let interfaces = [("lo", ""), ("eth0", "e1000"), ("enp1s0", "igb"), ("enp2s0", "igb"), ("vm0", "virtio_net")];
        parse(text).unwrap().select(&interfaces.map(|(name, driver)| interface(name, driver)))
    }

    fn names(selected: &Selected) -> Vec<&str> {
        selected.interfaces.iter().map(|(name, _)| name.as_str()).collect()
    }

    #[test]
    fn names_patterns_and_drivers_select_interfaces_each_once() {
        let selected = select("# both sides\neth0\nenp?s0 # the backends\n\n  driver=igb\ndriver=virtio_net tc\n");
        assert_eq!(names(&selected), ["eth0", "enp1s0", "enp2s0", "vm0"]);
        assert_eq!(selected.missing, [""; 0]);
        assert_eq!(names(&select("enp[2-9]*\n")), ["enp2s0"]);
    }

    #[test]
    fn the_first_line_that_matches_decides_the_mode() {
        let selected = select("enp2s0 generic\nenp*\tnative\neth0");
        let modes: Vec<_> = selected.interfaces.iter().map(|(_, mode)| *mode).collect();
        assert_eq!(modes, [None, Some(AttachMode::Native), Some(AttachMode::Generic)]);
    }

    #[test]
    fn only_a_name_means_the_loopback() {
        assert_eq!(names(&select("*")), ["eth0", "enp1s0", "enp2s0", "vm0"]);
        assert_eq!(names(&select("lo")), ["lo"]);
    }

    #[test]
    fn lines_that_match_nothing_are_told() {
        let selected = select("eth0\neth1 native\nwlan*\ndriver=mlx5_core\n");
        assert_eq!(names(&selected), ["eth0"]);
        assert_eq!(selected.missing, ["eth1", "wlan*", "driver=mlx5_core"]);
    }

    #[test]
    fn a_line_that_is_none_is_refused_with_its_place() {
        for line in ["eth0 fast", "eth0 native tc", "driver=", "mac=02:00:00:00:00:01", "eth[0"] {
            let error = parse(&format!("# interfaces\n{line}\n")).unwrap_err();
            assert!(error.starts_with("interfaces:2: expected") && error.contains(line), "{error}");
        }
        assert!(parse("# nothing\n\n").unwrap_err().contains("names no interface"));
    }

    #[test]
    fn waiting_ends_when_all_is_there_and_at_the_deadline() {
        let start = Instant::now();
        let selected = parse("lo").unwrap().wait(Duration::from_secs(60)).unwrap();
        assert!(selected.missing.is_empty() && start.elapsed() < Duration::from_secs(30));
        let selected = parse("lo\nno-such-thing").unwrap().wait(Duration::from_millis(150)).unwrap();
        assert_eq!((names(&selected), selected.missing.len()), (vec!["lo"], 1));
        assert!(start.elapsed() >= Duration::from_millis(150));
    }
}
