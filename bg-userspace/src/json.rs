//! How values appear in JSON.

use std::time::Duration;

use bg_common::{Colour, Protocol};
use serde::Serializer;

use crate::config::protocol_name;

/// By its name.
pub(crate) fn colour<S: Serializer>(colour: &Colour, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(colour.name())
}

/// By its name.
pub(crate) fn protocol<S: Serializer>(protocol: &Protocol, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(protocol_name(*protocol))
}

/// As the configuration has it.
pub(crate) fn duration<S: Serializer>(duration: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => serializer.collect_str(&humantime::format_duration(*duration)),
        None => serializer.serialize_none(),
    }
}
