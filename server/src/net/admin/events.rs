//! What changes, as it changes: server-sent events, a few a second at most.
//!
//! A listener is told every run once, then what is different. One that does not keep up loses its stream and asks again.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use hyper::body::Frame;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::Shared;
use super::views::{Problem, RunView};

/// Listeners at a time.
pub(super) const STREAMS: usize = 16;
/// The shortest time between two looks at the runs that are being worked on.
const PAUSE: Duration = Duration::from_millis(300);
/// How often all of them are looked at: a run that another operator has handed in is announced by nobody.
const GLANCE: Duration = Duration::from_secs(2);
/// How long a listener may take to read what was sent before.
const PATIENCE: Duration = Duration::from_secs(30);

/// A body that is written while it is read.
struct Feed(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Feed {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// How many sites are connected.
#[derive(Serialize)]
struct Sites {
    connected: usize,
}

/// Server-sent events: `run` with a run's summary for every run and whenever one changes, `sites` with the number of connected
/// sites whenever one comes or goes.
#[utoipa::path(
    get,
    path = "/api/v1/events",
    responses((status = OK, content_type = "text/event-stream", body = String), (status = SERVICE_UNAVAILABLE, body = Problem))
)]
pub(super) async fn events(State(admin): State<Shared>) -> Result<Response, Problem> {
    let Ok(seat) = std::sync::Arc::clone(&admin.streams).try_acquire_owned() else {
        let message = format!("{STREAMS} listeners are all there may be; close another page");
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, message));
    };
    let (sender, receiver) = mpsc::channel(8);
    tokio::spawn(tell(admin, sender, seat));
    let body = Body::new(Feed(receiver));
    Ok(([(CONTENT_TYPE, "text/event-stream")], body).into_response())
}

fn event(name: &str, data: &impl Serialize) -> String {
    let data = serde_json::to_string(data).expect("plain structures have a JSON form");
    format!("event: {name}\ndata: {data}\n\n")
}

/// Tells what changes until nobody listens.
async fn tell(admin: Shared, to: mpsc::Sender<Bytes>, seat: OwnedSemaphorePermit) {
    let _seat = seat;
    let (mut live, mut presence) = (admin.operators.live.clone(), admin.presence.watch());
    let (mut told, mut connected) = (BTreeMap::new(), None);
    let mut glance = Instant::now();
    loop {
        live.borrow_and_update();
        presence.borrow_and_update();
        // An empty comment shows a listener that the line is alive.
        let mut text = String::from(":\n\n");
        let now = admin.presence.connected();
        if connected.replace(now) != Some(now) {
            text += &event("sites", &Sites { connected: now });
        }
        let mut runs: Vec<RunView> = live.borrow().values().map(|run| RunView::from(&**run)).collect();
        if glance <= Instant::now() {
            glance = Instant::now() + GLANCE;
            // What cannot be read now may be read next time.
            runs = admin.operators.list().await.unwrap_or_default().iter().rev().map(RunView::from).collect();
        }
        for run in runs {
            if told.get(&run.run) != Some(&run) {
                text += &event("run", &run);
                told.insert(run.run.clone(), run);
            }
        }
        if !matches!(timeout(PATIENCE, to.send(Bytes::from(text))).await, Ok(Ok(()))) {
            return;
        }
        sleep(PAUSE).await;
        tokio::select! {
            changed = live.changed() => if changed.is_err() { return },
            changed = presence.changed() => if changed.is_err() { return },
            () = sleep_until(glance) => {}
            () = to.closed() => return,
        }
    }
}
