//! The page's own files, which hold no secret and are built in.

use std::fmt::Write as _;

use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, IF_NONE_MATCH};
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use sha2::{Digest, Sha256};

use super::views::Problem;

const JAVASCRIPT: &str = "text/javascript; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";

/// A file by its path.
struct Page(&'static str, &'static str, &'static [u8]);

macro_rules! page {
    ($path:literal, $kind:expr) => {
        Page(concat!("/", $path), $kind, include_bytes!(concat!("../../../web/", $path)))
    };
}

/// Every file of the page.
const PAGES: &[Page] = &[
    page!("index.html", "text/html; charset=utf-8"),
    page!("icon.svg", "image/svg+xml"),
    page!("look.css", CSS),
    page!("style.css", CSS),
    page!("theme.js", JAVASCRIPT),
    page!("main.js", JAVASCRIPT),
    page!("api.js", JAVASCRIPT),
    page!("charts.js", JAVASCRIPT),
    page!("dialogs.js", JAVASCRIPT),
    page!("dom.js", JAVASCRIPT),
    page!("format.js", JAVASCRIPT),
    page!("views/audit.js", JAVASCRIPT),
    page!("views/privacy.js", JAVASCRIPT),
    page!("views/promise.js", JAVASCRIPT),
    page!("views/run.js", JAVASCRIPT),
    page!("views/runs.js", JAVASCRIPT),
    page!("views/sites.js", JAVASCRIPT),
    page!("vendor/uplot/uPlot.iife.min.js", JAVASCRIPT),
    page!("vendor/uplot/uPlot.min.css", CSS),
    page!("vendor/uplot/LICENSE", "text/plain; charset=utf-8"),
];

/// Answers what is no route.
pub(super) async fn page(method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path = if uri.path() == "/" { "/index.html" } else { uri.path() };
    let found = PAGES.iter().find(|page| page.0 == path);
    let Some(Page(_, kind, bytes)) = found.filter(|_| method == Method::GET || method == Method::HEAD) else {
        return Problem::new(StatusCode::NOT_FOUND, format!("there is no {path} here")).into_response();
    };
    let tag = tag_of(bytes);
    let kept = headers.get(IF_NONE_MATCH).is_some_and(|shown| shown.as_bytes() == tag.as_bytes());
    let head = [(CONTENT_TYPE, *kind), (CACHE_CONTROL, "no-cache"), (ETAG, tag.as_str())];
    if kept { (StatusCode::NOT_MODIFIED, head).into_response() } else { (head, *bytes).into_response() }
}

/// A file's version, for browsers that have it already.
fn tag_of(bytes: &[u8]) -> String {
    let mut tag = String::from("\"");
    for byte in &Sha256::digest(bytes)[..8] {
        write!(tag, "{byte:02x}").expect("a String takes everything");
    }
    tag + "\""
}
