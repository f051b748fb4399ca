//! A program of others on a hook of an interface.

use std::fmt;

use serde::Serialize;

pub(super) const XDP: &str = "xdp";
pub(super) const XDP_GENERIC: &str = "xdp generic";

/// A program that does not belong to this instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OtherProgram {
    /// Its hook: `xdp`, `xdp generic`, `tcx ingress`, `tcx egress`, `clsact ingress`, `clsact egress`.
    pub hook: &'static str,
    /// Its name; empty if it has none, or the caller may not read it.
    pub name: String,
    /// Its id in the kernel; 0 for a filter that is not a program.
    pub id: u32,
    /// The id of the link that holds it, if any.
    pub link: Option<u32>,
    /// Whether it belongs to another instance of bgctl.
    pub bgctl: bool,
    /// Whether it sees packets before this instance's program.
    #[serde(skip)]
    pub(crate) in_front: bool,
}

impl fmt::Display for OtherProgram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { hook, name, id, link, bgctl, .. } = self;
        let owner = if *bgctl { " of another bgctl instance" } else { "" };
        let hook = match *hook {
            XDP => "XDP",
            XDP_GENERIC => "generic XDP",
            hook => hook,
        };
        write!(f, "{hook} program \"{name}\"{owner} (id {id}")?;
        match link {
            Some(link) => write!(f, ", link {link})"),
            None => f.write_str(")"),
        }
    }
}

impl OtherProgram {
    pub(super) fn new(hook: &'static str, id: u32) -> Self {
        Self { hook, name: String::new(), id, link: None, bgctl: false, in_front: false }
    }

    /// A sentence about a program that runs before this instance's program on an interface.
    pub fn warning(&self, interface: &str) -> String {
        let end = if self.bgctl {
            "it takes every packet for its own VIPs, even if they are VIPs of this instance too"
        } else {
            "packets that it drops, redirects or finally accepts never reach this instance"
        };
        format!("{interface}: the {self} runs before this instance's program: {end}")
    }

    /// Whether it is an XDP program.
    pub(crate) fn is_xdp(&self) -> bool {
        matches!(self.hook, XDP | XDP_GENERIC)
    }

    /// The command that removes it.
    pub(crate) fn removal(&self, interface: &str) -> String {
        match (self.link, self.hook) {
            (Some(link), _) => format!("bpftool link detach id {link}"),
            (None, XDP) => format!("ip link set dev {interface} xdp off"),
            (None, XDP_GENERIC) => format!("ip link set dev {interface} xdpgeneric off"),
            (None, _) => format!("bpftool net show dev {interface} shows how it is attached"),
        }
    }
}
