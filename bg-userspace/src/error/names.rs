//! Suggestions for a name that does not exist.

/// A suggestion for a name that does not exist: the most similar names, or all names if they are few.
pub(super) fn instead(name: &str, existing: &[String], none: &str) -> String {
    const SHOWN: usize = 10;
    const ALIKE: f64 = 0.8;
    let mut existing: Vec<_> = existing.iter().map(|other| (strsim::jaro_winkler(name, other), other)).collect();
    existing.sort_by(|(a, name), (b, other)| b.total_cmp(a).then(name.cmp(other)));
    existing.dedup();
    let names = |likeness: f64| {
        let names = existing.iter().take(SHOWN).filter(move |(alike, _)| *alike >= likeness);
        names.map(|(_, name)| format!("\"{name}\"")).collect::<Vec<_>>()
    };
    match (&names(ALIKE)[..], existing.len()) {
        (_, 0) => format!("there is {none}"),
        ([], all @ ..=SHOWN) => format!("there {}: {}", if all == 1 { "is" } else { "are" }, names(0.0).join(", ")),
        ([], all) => format!("there are {all}, such as {}", names(0.0).join(", ")),
        (alike, _) => format!("did you mean {}?", alike.join(" or ")),
    }
}

#[cfg(test)]
mod tests {
    use crate::Error;

    #[test]
    fn a_name_that_does_not_exist_is_answered_with_names_that_do() {
        let says = |name: &str, existing: &[&str]| {
            let existing = existing.iter().map(|&name| name.to_owned()).collect();
            Error::UnknownDeployment { name: name.to_owned(), existing }.to_string()
        };
        assert!(says("shop", &[]).contains("no deployment at all (`bgctl apply"));
        assert!(says("shpo", &["mail", "shop"]).ends_with("did you mean \"shop\"?"));
        assert!(says("x", &["shop", "mail"]).ends_with("there are: \"mail\", \"shop\""));
        let many: Vec<_> = (0..1000).map(|number| format!("zone-{number}")).collect();
        let many: Vec<_> = many.iter().map(String::as_str).collect();
        let message = says("shop", &many);
        assert!(message.contains("there are 1000, such as") && message.len() < 250, "{message}");
    }
}
