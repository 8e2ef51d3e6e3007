//! What a server of a later release may say: it is declined by name, within a second, and ends nothing.

use protocol::wire::{FRAME_HEAD, SMALL_MAX, Unsupported};
use protocol::{StepId, TaskId};
use tokio::time::Instant;

use super::*;

/// How soon whatever is not known must be declined.
const SOON: Duration = Duration::from_secs(1);

/// A frame of this kind, with a body of these bytes.
fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut frame = encode(FrameKind::Notice, &());
    frame[7] = kind;
    frame[8..].copy_from_slice(&(body.len() as u32).to_le_bytes());
    [&frame, body].concat()
}

async fn says(connection: &quinn::Connection, bytes: &[u8]) -> (quinn::SendStream, quinn::RecvStream) {
    let (mut send, recv) = connection.open_bi().await.unwrap();
    send.write_all(bytes).await.unwrap();
    (send, recv)
}

#[test]
fn a_frame_of_an_unknown_kind_is_passed_over_and_answered_unsupported() {
    play(async {
        let authority = Authority::new();
        for server in [authority.capable_server(), authority.server()] {
            let mut agent = Running::start(well(), authority.identity("north"), &server);
            let connection = server.welcome().await;
            for (kind, body) in [(77, vec![9; 100]), (200, Vec::new()), (17, vec![1; HEADER_MAX + 1])] {
                let began = Instant::now();
                // Values follow, as behind a task.
                let bytes = [frame(kind, &body), vec![0; 4096]].concat();
                let (mut send, mut recv) = connection.open_bi().await.unwrap();
                // It need not listen to the end.
                let _ = send.write_all(&bytes).await;
                let said = read_frame::<Unsupported>(&mut recv, FrameKind::Unsupported, SMALL_MAX).await;
                assert_eq!(said.unwrap().unwrap(), Unsupported { kind });
                assert!(recv.read_to_end(1).await.unwrap().is_empty() && began.elapsed() < SOON);
            }
            let told = |event: &AgentEvent| match event {
                AgentEvent::Abandoned { task: None, error } => Some(error.clone()),
                _ => None,
            };
            assert!(agent.until(told).await.contains("a frame of kind 77"));
            let (_send, mut recv) = send_task(&connection, &train(1, 3)).await;
            assert!(read_answer(&mut recv).await.outcome.points().is_some(), "the site works on");
            agent.stop().await;
        }
    });
}

#[test]
fn a_task_whose_work_is_unknown_or_whose_header_is_too_long_is_declined_by_its_id() {
    play(async {
        let authority = Authority::new();
        let server = authority.capable_server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        let asked = train(1, 3);
        let id = TaskId { attempt: 4, ..TaskId::new(asked.id.run, asked.id.round, StepId::method(7)) };
        let header = TaskHeader { id, work: WorkHeader::Evaluate, ..TaskHeader::of(&asked, "{}") };
        let mut unknown = encode(FrameKind::Task, &header);
        let at = unknown.len() - 12;
        unknown[at..at + 4].copy_from_slice(&9u32.to_le_bytes());
        let long = TaskHeader { spec_json: " ".repeat(HEADER_MAX), ..header.clone() };
        let mut garbled = encode(FrameKind::Task, &header);
        garbled[FRAME_HEAD + 16..].fill(0xff);
        let cases = [
            (unknown, "work of kind 9"),
            (encode(FrameKind::Task, &long), "at most 262144 are allowed"),
            (garbled, "the task's header is not understood"),
        ];
        for (bytes, why) in cases {
            let began = Instant::now();
            let (mut send, mut recv) = connection.open_bi().await.unwrap();
            let _ = send.write_all(&[&bytes[..], &[0; 64]].concat()).await;
            let answer = read_answer(&mut recv).await;
            let Outcome::Declined { reason: Decline::Unsupported, detail } = answer.outcome else { panic!() };
            assert!(detail.contains(why) && answer.task == id, "{detail}");
            assert!(began.elapsed() < SOON);
            let declined = |event: &AgentEvent| matches!(event, AgentEvent::Declined { .. }).then_some(());
            agent.until(declined).await;
        }
        agent.stop().await;
    });
}

#[test]
fn a_notice_that_is_not_known_is_ignored_and_so_are_unknown_frames_before_a_receipt() {
    play(async {
        let authority = Authority::new();
        let server = authority.capable_server();
        let mut agent = Running::start(well(), authority.identity("north"), &server);
        let connection = server.welcome().await;
        let (mut send, mut recv) = says(&connection, &frame(FrameKind::Notice as u8, &[9, 0, 0, 0])).await;
        send.finish().unwrap();
        assert!(recv.read_to_end(1).await.unwrap().is_empty(), "it is no fault");
        let (mut send, mut recv) = send_task(&connection, &train(1, 3)).await;
        read_answer(&mut recv).await;
        send.write_all(&[frame(99, &[1; 30]), frame(98, &[])].concat()).await.unwrap();
        acknowledge(&mut send, Receipt::Accepted).await;
        agent.until(|event| matches!(event, AgentEvent::Accepted { .. }).then_some(())).await;
        agent.stop().await;
    });
}
