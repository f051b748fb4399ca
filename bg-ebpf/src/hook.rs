//! Where a frame was met.

/// Which way frames cross the interface at the hook.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into this host, at XDP: what cannot be redirected at once is left unmodified to tc ingress behind it.
    Early = 0,
    /// Into this host, at tc ingress.
    Ingress = 1,
    /// Out of this host: tc egress. Only replies of the host's own stack are looked for.
    Egress = 2,
}

impl Direction {
    /// From what a global function was given.
    #[inline(always)]
    pub const fn from_u32(direction: u32) -> Self {
        match direction {
            0 => Self::Early,
            1 => Self::Ingress,
            _ => Self::Egress,
        }
    }
}

/// What is known of a frame beside its bytes.
#[derive(Clone, Copy)]
pub struct Frame {
    /// Which way it crosses the interface.
    pub direction: Direction,
    /// Bytes of the whole frame; the packet may hold only the first of them (tc).
    pub len: usize,
}

/// A frame at a hook, and the moment.
#[derive(Clone, Copy)]
pub struct Hook<'a, W> {
    /// Which way the frame crosses the interface.
    pub direction: Direction,
    /// Bytes of the whole frame.
    pub frame_len: usize,
    /// Maps, clock and routes.
    pub world: &'a W,
    /// The tick at which the frame is processed.
    pub now: u32,
}
