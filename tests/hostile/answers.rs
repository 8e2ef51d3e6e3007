//! A site with a good certificate and bad answers. Each kind of bad answer has its own reason, which the operator and
//! the site both read, and none of them moves the model.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use protocol::wire::{AnswerBody, AnswerHeader, FRAME_HEAD, FrameKind, Receipt, encode};
use protocol::{Metrics, Rejection, Round, RunId, Task};
use server::net::Limits;
use tokio::time::sleep;

use crate::intruder::{Asked, Credentials, Intruder, hello, socket};
use crate::stage::{ROUNDS, Stage, plan, refused};

/// What the intruder does with a task.
enum Trick {
    /// Says this and ends the stream.
    Say(Vec<u8>),
    /// Says this, then this byte by byte with a pause after each, and never ends the stream.
    Drip(Vec<u8>, Vec<u8>),
}

/// What the intruder heard.
#[derive(Default)]
struct Heard {
    receipts: Vec<Receipt>,
    farewells: Vec<String>,
}

/// Plays tricks until it is aborted; comes back whenever it is thrown out, and after a transfer that broke off.
async fn misbehave(
    stage: Arc<Stage>,
    credentials: Credentials,
    trick: fn(&Task, usize) -> Trick,
    heard: Arc<Mutex<Heard>>,
) {
    let (endpoint, mut turn) = (socket(), 0);
    loop {
        let address = stage.server.local_addr();
        let intruder = Intruder::connect(&endpoint, address, credentials.config()).await.unwrap();
        intruder.greet().await;
        while let Some(mut asked) = intruder.next_task().await {
            play(trick(&asked.task, turn), &mut asked).await;
            turn += 1;
            let Some(receipt) = asked.receipt().await else { break };
            heard.lock().unwrap().receipts.push(receipt);
            if receipt == Receipt::Refused(Rejection::Truncated) {
                intruder.connection.close(0u32.into(), b"");
            }
        }
        let farewell = intruder.farewell().await;
        heard.lock().unwrap().farewells.push(farewell);
    }
}

/// A server that has heard enough may stop the stream: that is no reason to panic.
async fn play(trick: Trick, asked: &mut Asked) {
    match trick {
        Trick::Say(bytes) => {
            let _ = asked.send.write_all(&bytes).await;
            let _ = asked.send.finish();
        }
        Trick::Drip(bytes, drops) => {
            let _ = asked.send.write_all(&bytes).await;
            for drop in drops {
                if asked.send.write_all(&[drop]).await.is_err() {
                    return;
                }
                sleep(DRIP).await;
            }
        }
    }
}

/// Runs the plan with the honest sites and one that plays tricks. Every train task's answer must be refused for one of
/// these reasons, each as often as there are rounds, at the operator and at the site; the reasons in the other
/// list must each have cost the site its connection.
async fn refuses(reasons: &[Rejection], trick: fn(&Task, usize) -> Trick, limits: Limits) {
    let stage = Arc::new(Stage::open(limits).await);
    let credentials = Credentials::of(&stage.federation.issue("mallory"));
    let heard = Arc::new(Mutex::new(Heard::default()));
    let intruder = tokio::spawn(misbehave(Arc::clone(&stage), credentials, trick, Arc::clone(&heard)));
    let summary = stage.finish(&plan(4)).await;
    intruder.abort();
    assert!(intruder.await.unwrap_err().is_cancelled(), "the intruder panicked");

    let expected: BTreeMap<String, u32> =
        reasons.iter().map(|reason| (reason.name().to_owned(), ROUNDS)).collect();
    assert_eq!(refused(&summary, "mallory"), expected);
    let mallory = summary.clients.iter().find(|one| one.client.as_str() == "mallory").unwrap();
    assert_eq!(mallory.accepted, 0);
    let Heard { receipts, farewells } = std::mem::take(&mut *heard.lock().unwrap());
    // The last receipt may still be on its way when the run has ended.
    assert!(receipts.len() + 1 >= reasons.len() * ROUNDS as usize, "{receipts:?}");
    for (receipt, reason) in receipts.iter().zip(reasons.iter().cycle()) {
        assert_eq!(*receipt, Receipt::Refused(*reason));
    }
    let [reason] = reasons else { return close(stage).await };
    if matches!(reason, Rejection::Malformed | Rejection::Oversize | Rejection::TooSlow) {
        assert!(farewells.len() + 1 >= ROUNDS as usize, "{farewells:?}");
        let text = format!("an answer was refused: {}", reason.name());
        assert!(farewells.iter().all(|farewell| farewell.starts_with(&text)), "{farewells:?}");
    } else {
        assert_eq!(farewells, Vec::<String>::new(), "a bad number is no reason to hang up");
    }
    close(stage).await;
}

async fn close(stage: Arc<Stage>) {
    Arc::into_inner(stage).expect("the intruder has let go of the stage").close().await;
}

/// A pause between two bytes.
const DRIP: Duration = Duration::from_millis(40);

/// Metrics with nothing wrong.
const SOUND: Metrics = Metrics { loss: 0.5, accuracy: None, examples: 8, seconds: 0.1 };

/// A whole answer of these points.
fn answer(task: &Task, points: &[i32], weight: u32, metrics: Metrics) -> Vec<u8> {
    let body = AnswerBody::Trained { len: points.len() as u64, weight, vote: 0, metrics };
    let mut bytes = encode(FrameKind::Answer, &AnswerHeader { task: task.id, body });
    points.iter().for_each(|point| bytes.extend(point.to_le_bytes()));
    bytes
}

/// An answer with nothing wrong: an update of zeros.
fn sound(task: &Task) -> Vec<u8> {
    answer(task, &vec![0; dimension(task)], 1, SOUND)
}

fn dimension(task: &Task) -> usize {
    task.work.model().expect("the plan only trains").len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_that_are_not_finite_or_out_of_range_are_bad_metrics() {
    let trick = |task: &Task, turn: usize| {
        let metrics = match turn {
            0 => Metrics { loss: f64::NAN, ..SOUND },
            1 => Metrics { seconds: f64::INFINITY, ..SOUND },
            _ => Metrics { accuracy: Some(1.5), ..SOUND },
        };
        Trick::Say(answer(task, &vec![0; dimension(task)], 1, metrics))
    };
    refuses(&[Rejection::BadMetrics], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bits_of_nan_and_infinity_are_out_of_range() {
    let trick = |task: &Task, turn: usize| {
        let mut points = vec![0; dimension(task)];
        points[turn] = [f32::NAN.to_bits() as i32, f32::INFINITY.to_bits() as i32, i32::MIN][turn];
        Trick::Say(answer(task, &points, 1, SOUND))
    };
    refuses(&[Rejection::OutOfRange], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_longer_than_the_bound_is_refused_by_its_norm() {
    let trick = |task: &Task, turn: usize| {
        let reach = task.spec.lattice(dimension(task)).unwrap().range();
        // Far too long, a little, and by the least that an integer can be.
        let mut points = vec![0; dimension(task)];
        match turn {
            0 => points.fill(reach),
            1 => points[..2].fill(reach / 4 * 3),
            _ => points[..2].copy_from_slice(&[reach, 1]),
        }
        Trick::Say(answer(task, &points, 1, SOUND))
    };
    refuses(&[Rejection::NormExceeded], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weight_of_zero_or_beyond_the_plan_is_refused() {
    let trick = |task: &Task, turn: usize| {
        let weight = [0, task.spec.update.weight_max + 1, u32::MAX][turn];
        Trick::Say(answer(task, &vec![0; dimension(task)], weight, SOUND))
    };
    refuses(&[Rejection::WrongWeight], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_with_a_value_too_few_has_the_wrong_shape() {
    let trick = |task: &Task, turn: usize| {
        Trick::Say(answer(task, &vec![0; [dimension(task) - 1, 1, 0][turn]], 1, SOUND))
    };
    refuses(&[Rejection::WrongShape], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_to_another_round_or_run_is_stale() {
    let trick = |task: &Task, turn: usize| {
        let mut other = task.clone();
        match turn {
            0 => other.id.round = Round(task.id.round.0 + 1),
            1 => other.id.round = Round(task.id.round.0 - 1),
            _ => other.id.run = RunId(!task.id.run.0),
        }
        Trick::Say(sound(&other))
    };
    refuses(&[Rejection::Stale], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_of_an_evaluation_are_no_answer_to_training() {
    let trick = |task: &Task, _: usize| {
        let body = AnswerBody::Evaluated { metrics: SOUND };
        Trick::Say(encode(FrameKind::Answer, &AnswerHeader { task: task.id, body }))
    };
    refuses(&[Rejection::WrongKind], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_answers_twice_is_counted_not_once() {
    let trick = |task: &Task, _: usize| Trick::Say([sound(task), sound(task)].concat());
    refuses(&[Rejection::Duplicate], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_beyond_the_plan_takes_no_memory_and_costs_the_connection() {
    let trick = |task: &Task, turn: usize| {
        // Values of 4 EiB, one value too many, and a frame of 4 GiB.
        let len = [1 << 60, dimension(task) as u64 + 1, 1][turn];
        let body = AnswerBody::Trained { len, weight: 1, vote: 0, metrics: SOUND };
        let mut header = encode(FrameKind::Answer, &AnswerHeader { task: task.id, body });
        if turn == 2 {
            header.truncate(FRAME_HEAD);
            header[FRAME_HEAD - 4..].fill(0xff);
        }
        Trick::Say(header)
    };
    refuses(&[Rejection::Oversize], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_breaks_off_may_be_tried_again_and_is_not_counted() {
    let trick = |task: &Task, turn: usize| {
        let whole = sound(task);
        // First it breaks off; asked again, it is refused for good.
        Trick::Say(if turn.is_multiple_of(2) {
            whole[..whole.len() - 1].to_vec()
        } else {
            answer(task, &vec![0; dimension(task)], 0, SOUND)
        })
    };
    refuses(&[Rejection::Truncated, Rejection::WrongWeight], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_that_are_no_answer_are_malformed() {
    let trick = |task: &Task, turn: usize| {
        let mut bytes = sound(task);
        match turn {
            0 => bytes = (0..255).collect(),
            // A frame that is another message, and one whose body is a decoder's nightmare.
            1 => bytes = hello(),
            _ => bytes[FRAME_HEAD..].fill(0xff),
        }
        Trick::Say(bytes)
    };
    refuses(&[Rejection::Malformed], trick, Limits::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_in_drips_is_given_up() {
    let limits = Limits { upload_idle: 10 * DRIP, ..Limits::default() };
    let trick = |task: &Task, turn: usize| {
        let mut header = sound(task);
        header.truncate(header.len() - 4 * dimension(task));
        // No pause is long, but the header takes too long. In the end it just stops.
        if turn < 2 { Trick::Drip(Vec::new(), header) } else { Trick::Drip(header, Vec::new()) }
    };
    refuses(&[Rejection::TooSlow], trick, limits).await;
}
