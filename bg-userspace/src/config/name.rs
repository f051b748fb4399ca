//! Names of deployments and services.

/// Bytes that the maps have for a name.
pub(super) const MAX_NAME: usize = 64;

/// What is wrong with a name, if anything.
pub(super) fn name_problem(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("it is empty".to_owned())
    } else if name.len() > MAX_NAME {
        Some(format!("it has {} bytes", name.len()))
    } else if name.contains(char::is_control) {
        Some("it has control characters".to_owned())
    } else {
        None
    }
}
