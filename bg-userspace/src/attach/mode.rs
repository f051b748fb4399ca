//! The modes of attaching to an interface.

use serde::Serialize;

/// How to attach.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// The present mode, if the interface is attached; else native XDP on hardware whose driver supports it, and tc otherwise.
    #[default]
    Auto,
    /// XDP in the driver.
    Native,
    /// XDP in the network stack, on any interface.
    Generic,
    /// tc in both directions: TCX if the kernel has it (6.6), else clsact.
    Tc,
}

/// The mode in which an interface is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AttachedMode {
    /// XDP in the driver.
    Native,
    /// XDP in the network stack.
    Generic,
    /// tc in both directions.
    Tc,
}

impl AttachedMode {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Tc => "tc",
        }
    }
}
