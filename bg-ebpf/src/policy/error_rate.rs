//! How many ICMP errors are sent: RFC 4443 (section 2.4) and RFC 1812 (section 4.3.2.8) ask for a limit, since anybody can send datagrams that are refused.
//!
//! What fits is told by a limit of its own: whoever draws other errors, by packets whose hop limit ends here, say, does not keep it from clients.
//!
//! A token bucket in one word, the instant at which it will be full again. The numbers are those of Linux (`net.ipv4.icmp_msgs_per_sec`, `icmp_msgs_burst`).

/// Nanoseconds for each error: a thousand a second.
pub const INTERVAL: u64 = 1_000_000;

/// Errors that may be sent at once.
pub const BURST: u64 = 50;

/// The word once another error has been sent, at `now`. `None`: it must not be sent.
#[inline(always)]
pub const fn next(full_at: u64, now: u64) -> Option<u64> {
    let full_at = if full_at > now { full_at } else { now };
    if full_at - now > (BURST - 1) * INTERVAL {
        return None;
    }
    Some(full_at + INTERVAL)
}
