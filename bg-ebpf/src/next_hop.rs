//! The way out: a route look-up, cached where the destination is one and the same.
//!
//! For a backend that is its row, for a client its flow's reply entry. So neither a MAC nor a route is
//! configured by hand, and a packet of an open flow pays nothing for it.

use crate::{
    Hook,
    flow_ref::HopCache,
    headers::{Headers, IpVersion},
    rewrite::Writer,
    tables::{RouteQuery, Tables},
};
use bg_common::{Event, NextHop};

/// The next hop from `src` to `dst`. [`NextHop::NONE`], counted: the host's stack has to find the way, because the
/// neighbour is not resolved, the egress interface cannot be redirected to, the packet is too big for it, or
/// the frame is of a VLAN.
#[inline(always)]
pub fn towards<V: IpVersion>(
    src: V::Address,
    dst: V::Address,
    headers: &Headers<V>,
    cache: HopCache,
    hook: &Hook<'_, impl Tables, impl Writer>,
    now: u32,
) -> NextHop {
    if hook.tagged {
        hook.tables.count(Event::NextHopByStack);
        return NextHop::NONE;
    }
    let hop = match cache.read(now) {
        Some(hop) => hop,
        None => {
            let query = RouteQuery { family: V::FAMILY, src: V::widen(src), dst: V::widen(dst) };
            let hop = NextHop { learned: now, ..hook.tables.route(&query).unwrap_or_default() };
            cache.write(hop);
            hop
        }
    };
    if !hop.is_some() {
        hook.tables.count(Event::NextHopByStack);
        return NextHop::NONE;
    }
    // A GSO packet is cut into segments on the way out; those have to fit, not the whole.
    let size = if hook.segment_len != 0 { hook.segment_len } else { headers.ip_len };
    if size > hop.mtu() {
        hook.tables.count(Event::TooBig);
        return NextHop::NONE;
    }
    hop
}
