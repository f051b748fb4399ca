//! Words that the result of a change and its dry run share.

/// By when, or on which conditions, a switch goes back, and which conditions were not armed.
pub(super) fn guard(
    goes_back: &str,
    deadline: Option<String>,
    revert_if: &[String],
    not_armed: &[String],
    deployment: &str,
) -> String {
    let when: Vec<_> =
        deadline.into_iter().chain(revert_if.iter().map(|condition| format!("if {condition}"))).collect();
    let confirm = match when.as_slice() {
        [] => String::new(),
        when => format!("; {goes_back} {}, unless `bgctl confirm {deployment}` comes before", when.join(" or ")),
    };
    let not_armed = match not_armed {
        [] => String::new(),
        _ => {
            let conditions = not_armed.join("\" and \"");
            format!("; the old colour meets \"{conditions}\" itself, so that does not take it back")
        }
    };
    confirm + &not_armed
}

/// A share in percent, with as many decimals as it has.
pub(super) fn percent(share: f64) -> f64 {
    (share * 10_000.0).round() / 100.0
}
