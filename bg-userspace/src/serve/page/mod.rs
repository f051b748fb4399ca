//! The web page: plain files, part of the program. The page needs nothing from elsewhere, and no step that builds it.

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    pub(super) content_type: &'static str,
    pub(super) content: &'static [u8],
}

const SCRIPT: &str = "text/javascript; charset=utf-8";

/// The files, by their paths.
const FILES: [(&str, &str, &[u8]); 9] = [
    ("/", "text/html; charset=utf-8", include_bytes!("index.html")),
    ("/style.css", "text/css; charset=utf-8", include_bytes!("style.css")),
    ("/icon.svg", "image/svg+xml", include_bytes!("icon.svg")),
    ("/app.js", SCRIPT, include_bytes!("app.js")),
    ("/api.js", SCRIPT, include_bytes!("api.js")),
    ("/card.js", SCRIPT, include_bytes!("card.js")),
    ("/plot.js", SCRIPT, include_bytes!("plot.js")),
    ("/question.js", SCRIPT, include_bytes!("question.js")),
    ("/words.js", SCRIPT, include_bytes!("words.js")),
];

/// The file at a path.
pub(super) fn file(path: &str) -> Option<File> {
    let (_, content_type, content) = FILES.into_iter().find(|(its, ..)| *its == path)?;
    Some(File { content_type, content })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(path: &str) -> &'static str {
        std::str::from_utf8(file(path).unwrap().content).unwrap()
    }

    #[test]
    fn all_that_the_page_loads_is_there() {
        let page = text("/");
        let named = page
            .split(['"', '\''])
            .filter(|name| name.ends_with(".js") || name.ends_with(".css") || name.ends_with(".svg"));
        let named: Vec<_> = named.map(|name| format!("/{name}")).collect();
        assert_eq!(named.len(), 3, "{named:?}");
        let scripts = FILES.iter().filter(|(_, content_type, _)| *content_type == SCRIPT).map(|(path, ..)| text(path));
        let imports = scripts.flat_map(|script| script.lines().filter_map(|line| line.split_once(" from \"./")));
        let imports: Vec<_> = imports.map(|(_, name)| format!("/{}", name.trim_end_matches("\";"))).collect();
        assert!(imports.len() >= 8, "{imports:?}");
        for path in named.iter().chain(&imports) {
            assert!(file(path).is_some(), "{path}");
        }
        assert!(file("/index.html").is_none() && file("/../api.js").is_none());
    }

    /// The policy of the API forbids all of it, so it would not work.
    #[test]
    fn nothing_is_inline_and_nothing_comes_from_elsewhere() {
        for (path, ..) in FILES {
            let text = text(path);
            let is_page = path == "/";
            for part in [
                "http://",
                "https://",
                "//cdn",
                "innerHTML",
                "outerHTML",
                "insertAdjacentHTML",
                "document.write",
                "eval(",
                "@import",
            ] {
                let found = text.replace("http://www.w3.org/2000/svg", "").contains(part);
                assert!(!found, "{path}: {part}");
            }
            for part in ["<style", " style=", " onclick=", "<script>", "javascript:"] {
                assert!(!is_page || !text.contains(part), "{path}: {part}");
            }
        }
    }
}
