//! What a switch in a frozen window would wait for.

use std::time::Duration;

use bg_common::{Colour, FlowState, Protocol};
use serde::{Serialize, Serializer};

use crate::{Error, Instance, config::OnSwitch, hold::HeldLog, maps::backends};

/// What a switch in a frozen window would wait for, and where new flows would wait for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct WindowOutlook {
    /// The longest time of the freeze.
    #[serde(serialize_with = "duration")]
    pub max: Duration,
    /// Whether the switch would wait for what is in flight. A cut ends it.
    pub waits: bool,
    /// What is in flight now on the colour that would get no new flows any more.
    pub in_flight: InFlight,
    /// Bytes of memory that are left for packets of new flows. Others are dropped.
    pub room: u64,
}

/// The flows in which something may be on its way. Those of testers and of preview addresses do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct InFlight {
    /// TCP connections.
    pub connections: u64,
    /// TCP connections whose client has not completed the handshake. A second after the freeze they would be ended.
    pub handshakes: u64,
    /// UDP flows with a packet in the last second.
    pub udp: u64,
}

impl Instance {
    /// What a switch would wait for if it froze the deployment now.
    pub(super) fn window_outlook(
        &self,
        index: u16,
        from: Colour,
        on_switch: OnSwitch,
        max: Duration,
    ) -> Result<WindowOutlook, Error> {
        let waits = on_switch == OnSwitch::Drain;
        let room = HeldLog::open(&self.paths)?.room();
        Ok(WindowOutlook { max, waits, in_flight: self.in_flight(index, from)?, room })
    }

    fn in_flight(&self, index: u16, from: Colour) -> Result<InFlight, Error> {
        let quiet = self.quiet_ticks();
        let sums = self.fold_open_flows(&backends(&self.paths)?, InFlight::default, |sum, open| {
            if !open.keeps_from_rest(index, from, quiet) {
                return;
            }
            match (open.target.protocol, open.flow.state.has(FlowState::CONFIRMED)) {
                (Protocol::Udp, _) => sum.udp += 1,
                (Protocol::Tcp, true) => sum.connections += 1,
                (Protocol::Tcp, false) => sum.handshakes += 1,
            }
        })?;
        Ok(sums.into_iter().fold(InFlight::default(), |all, part| InFlight {
            connections: all.connections + part.connections,
            handshakes: all.handshakes + part.handshakes,
            udp: all.udp + part.udp,
        }))
    }
}

fn duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}
