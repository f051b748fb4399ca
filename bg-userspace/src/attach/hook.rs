//! The hooks of an interface that carry bgctl's programs, and the names of their pins.
//!
//! A pin is called `<interface>:<hook>`. The BPF file system allows no dots in names. A dot in an interface's name is written as `%`,
//! which the kernel does not allow in interface names.

use super::mode::AttachedMode;

/// A hook of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hook {
    /// XDP, native or generic, by a link.
    Xdp(AttachedMode),
    /// tc ingress, by a TCX link.
    TcIngress,
    /// tc egress, by a TCX link.
    TcEgress,
    /// tc ingress by clsact, before Linux 6.6. There is no link to pin, so the program is pinned instead.
    ClsactIngress,
    /// tc egress by clsact.
    ClsactEgress,
}

impl Hook {
    const ALL: [Self; 6] = [
        Self::Xdp(AttachedMode::Native),
        Self::Xdp(AttachedMode::Generic),
        Self::TcIngress,
        Self::TcEgress,
        Self::ClsactIngress,
        Self::ClsactEgress,
    ];

    /// The mode that a program at this hook indicates, unless another hook of the interface indicates XDP: XDP modes use tc ingress
    /// too. `None` for tc egress, which every mode uses.
    pub(crate) const fn mode(self) -> Option<AttachedMode> {
        match self {
            Self::Xdp(mode) => Some(mode),
            Self::TcIngress | Self::ClsactIngress => Some(AttachedMode::Tc),
            Self::TcEgress | Self::ClsactEgress => None,
        }
    }

    /// The mode's name; "tc" for tc egress.
    pub(crate) const fn mode_name(self) -> &'static str {
        match self.mode() {
            Some(mode) => mode.name(),
            None => AttachedMode::Tc.name(),
        }
    }

    pub(crate) const fn is_xdp(self) -> bool {
        matches!(self, Self::Xdp(_))
    }

    pub(crate) const fn is_clsact(self) -> bool {
        matches!(self, Self::ClsactIngress | Self::ClsactEgress)
    }

    /// The same hook by clsact.
    pub(crate) const fn clsact(self) -> Self {
        match self {
            Self::TcIngress => Self::ClsactIngress,
            Self::TcEgress => Self::ClsactEgress,
            other => other,
        }
    }

    /// Whether both are the same hook, by a link or by clsact.
    pub(crate) fn is_same_place(self, other: Self) -> bool {
        self.clsact() == other.clsact()
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Xdp(mode) => mode.name(),
            Self::TcIngress => "tc_ingress",
            Self::TcEgress => "tc_egress",
            Self::ClsactIngress => "clsact_ingress",
            Self::ClsactEgress => "clsact_egress",
        }
    }

    /// Name of the pin.
    pub(crate) fn pin_name(self, interface: &str) -> String {
        format!("{}:{}", interface.replace('.', "%"), self.name())
    }

    /// The interface and the hook of a pin with this name.
    pub(crate) fn parse(pin_name: &str) -> Option<(String, Self)> {
        let (interface, place) = pin_name.split_once(':')?;
        let hook = Self::ALL.into_iter().find(|hook| hook.name() == place)?;
        Some((interface.replace('%', "."), hook))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_tells_its_interface_and_place() {
        for hook in Hook::ALL {
            let name = hook.pin_name("eth0.100");
            assert!(!name.contains('.'), "the BPF file system refuses dots: {name}");
            assert_eq!(Hook::parse(&name), Some(("eth0.100".to_owned(), hook)));
        }
        assert_eq!(Hook::parse("eth0:native:new"), None);
        assert_eq!(Hook::parse("eth0"), None);
    }
}
