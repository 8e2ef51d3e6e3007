//! Evaluation on the server's own data, on a thread of its own, so that the engine goes on meanwhile.
//!
//! A learner that fails or panics gives no metrics; it never stops a run.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc as thread_channel;

use protocol::{
    EvaluateOrder, LearnError, Learner, Metrics, Parameters, Purpose, Round, RunId, Seed, Spec, Standardiser,
    Stop,
};
use tokio::sync::mpsc;

use super::messages::Command;

/// One model to evaluate.
struct Question {
    round: Round,
    model: Arc<Parameters>,
    standardiser: Option<Arc<Standardiser>>,
}

/// The thread that evaluates for one run. Dropping it ends the thread.
pub(crate) struct Evaluator {
    questions: thread_channel::SyncSender<Question>,
    stop: Stop,
}

impl Evaluator {
    /// Starts the thread; its results go to the engine as [`Command::Evaluated`].
    pub(crate) fn start(
        run: RunId,
        spec: Arc<Spec>,
        mut learner: Box<dyn Learner>,
        engine: mpsc::WeakSender<Command>,
    ) -> Self {
        let (questions, inbox) = thread_channel::sync_channel::<Question>(1);
        let stop = Stop::default();
        let token = stop.clone();
        std::thread::spawn(move || {
            let mut ready = None;
            for question in inbox {
                let round = question.round;
                let asked = || -> Result<Metrics, LearnError> {
                    if ready.is_none() {
                        learner.prepare(&spec)?;
                        ready = Some(());
                    }
                    evaluate(&mut *learner, &question, &token)
                };
                let metrics = match catch_unwind(AssertUnwindSafe(asked)) {
                    // Else a loss of nothing would make every model the best.
                    Ok(Ok(metrics)) if measures_nothing(&metrics) => {
                        let what = spec.evaluation_records.name();
                        complain(run, round, &format!("the server's own source has no {what} records"))
                    }
                    Ok(Ok(metrics)) if metrics.is_sound() => Some(metrics),
                    Ok(Ok(_)) => complain(run, round, "its metrics are not finite"),
                    Ok(Err(error)) => complain(run, round, &error.message),
                    Err(_) => complain(run, round, "the learner panicked"),
                };
                drop(question);
                let Some(engine) = engine.upgrade() else { return };
                if engine.blocking_send(Command::Evaluated { run, round, metrics }).is_err() {
                    return;
                }
            }
        });
        Self { questions, stop }
    }

    /// Asks for an evaluation; `false` when the thread is gone or busy.
    pub(crate) fn ask(
        &self,
        round: Round,
        model: Arc<Parameters>,
        standardiser: Option<Arc<Standardiser>>,
    ) -> bool {
        self.questions.try_send(Question { round, model, standardiser }).is_ok()
    }
}

impl Drop for Evaluator {
    fn drop(&mut self) {
        self.stop.stop();
    }
}

/// Whether these are the metrics of no record.
fn measures_nothing(metrics: &Metrics) -> bool {
    let Metrics { loss, accuracy, examples, .. } = *metrics;
    examples == 0 && loss == 0.0 && accuracy.is_none()
}

fn complain(run: RunId, round: Round, why: &str) -> Option<Metrics> {
    tracing::warn!("the model of round {round} of run {run} could not be evaluated here: {why}");
    None
}

fn evaluate(learner: &mut dyn Learner, question: &Question, stop: &Stop) -> Result<Metrics, LearnError> {
    let order = EvaluateOrder { standardiser: question.standardiser.clone() };
    let shared = question.model.values();
    if !learner.layout().has_personal() {
        return learner.evaluate(shared, &order, stop);
    }
    // The server has no personal layers of its own: it takes fresh ones.
    let seed = Seed::from_number(0).derive(Purpose::Initialise, Round(0), None);
    let mut full = learner.initialise(seed)?;
    learner.layout().scatter_shared(shared, &mut full);
    learner.evaluate(&full, &order, stop)
}

#[cfg(test)]
mod tests;
