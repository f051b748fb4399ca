//! The live state of a deployment.

use bg_common::Colour;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};

use crate::json;

/// A deployment's live state at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// The number of changes so far.
    pub generation: u32,
    /// The colour that new flows go to.
    #[serde(serialize_with = "json::colour", deserialize_with = "read_colour")]
    pub live: Colour,
}

fn read_colour<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Colour, D::Error> {
    let name = String::deserialize(deserializer)?;
    Colour::ALL
        .into_iter()
        .find(|colour| colour.name() == name)
        .ok_or_else(|| D::Error::custom(format!("expected \"blue\" or \"green\", got \"{name}\"")))
}
