//! The web page.

/// A file of the page.
#[derive(Clone, Copy, Debug)]
pub(super) struct File {
    pub(super) content_type: &'static str,
    pub(super) content: &'static [u8],
}

/// The file at a path.
pub(super) fn file(path: &str) -> Option<File> {
    (path == "/").then_some(File {
        content_type: "text/html; charset=utf-8",
        content: b"<!doctype html><html lang=\"en\"><title>bgctl</title><p>See <a href=\"/v1/status\">/v1/status</a> and <a href=\"/openapi.json\">/openapi.json</a>.",
    })
}
