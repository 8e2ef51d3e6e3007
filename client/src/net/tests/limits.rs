//! What a site takes of its line, and a look at the line that takes nothing.

use std::num::NonZeroU64;

use super::*;
use crate::net::{Transport, probe};

#[test]
fn a_limited_site_takes_and_gives_at_its_own_pace_and_to_the_last_bit() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let large = || {
            let layout = Layout::new([("body".to_owned(), vec![60_001])]).unwrap();
            Participant::new(well().id().clone(), Box::new(Toy { layout, ..Toy::new(&[], Mood::Well) }))
        };
        let config = AgentConfig {
            upload_bytes_per_second: NonZeroU64::new(400_000),
            download_bytes_per_second: NonZeroU64::new(800_000),
            ..AgentConfig::new(server.address())
        };
        let agent = Agent::new(large(), authority.identity("north"), config);
        let leave = CancellationToken::new();
        let done = tokio::spawn(agent.run(leave.clone()));
        let connection = server.welcome().await;
        let began = tokio::time::Instant::now();
        let model = Arc::new(Parameters::new(vec![0.25; 60_001]));
        let asked = task(1, Work::Train { model, learning_rate_scale: 1e-4, norm_max: None });
        let (_send, mut recv) = send_task(&connection, &asked).await;
        let answer = read_answer(&mut recv).await;
        assert_eq!(answer, large().perform(&asked, entropy(), &Stop::default()));
        // 240 kB down in 0.3 s, and up in 0.6 s.
        assert!(began.elapsed() >= Duration::from_millis(850), "{:?}", began.elapsed());
        leave.cancel();
        done.await.unwrap().unwrap();
    });
}

#[test]
fn a_probe_sees_who_answers_and_says_goodbye() {
    play(async {
        let authority = Authority::new();
        let server = authority.server();
        let servers = [server.address()];
        let north = authority.identity("north");
        let (found, closed) =
            tokio::join!(probe(&servers, Transport::Auto, &north, Some("consortia probe"), None), async {
                server.welcome().await.closed().await
            });
        let found = found.unwrap();
        assert_eq!(found.greeting, Some(("stage".to_owned(), "north".to_owned())));
        assert_eq!(found.server.to_string(), servers[0]);
        assert!(found.certificate.is_some() && found.round_trip > Duration::ZERO, "{found:?}");
        let goodbye =
            matches!(&closed, ConnectionError::ApplicationClosed(close) if &close.reason[..] == b"leaving");
        assert!(goodbye, "{closed}");

        let silent = async {
            let connection = server.accept().await.unwrap();
            let streams = tokio::time::timeout(Duration::from_secs(5), connection.accept_bi()).await;
            assert!(!matches!(streams, Ok(Ok(_))), "a probe that does not greet opens no stream");
        };
        let (found, ()) = tokio::join!(probe(&servers, Transport::Auto, &north, None, None), silent);
        assert_eq!(found.unwrap().greeting, None);

        let stranger = Authority::new().identity("north");
        let (refused, _) =
            tokio::join!(probe(&servers, Transport::Auto, &stranger, None, None), server.accept());
        assert!(refused.unwrap_err().to_string().contains("ca.pem"));
    });
}
