//! Where a frame was met.

/// Which way frames cross the interface at the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into this host, at XDP: what cannot be redirected at once is left unmodified to tc ingress behind it.
    Early,
    /// Into this host, at tc ingress.
    Ingress,
    /// Out of this host: tc egress. Only replies of the host's own stack are looked for.
    Egress,
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
