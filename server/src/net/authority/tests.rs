//! What the authority signs, and what it refuses to.

use std::time::Duration as StdDuration;

use super::*;

/// A fixed moment: 2026-01-01.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + StdDuration::from_secs(1_767_225_600)
}

#[test]
fn an_authority_reads_back_as_it_was_made_and_is_not_made_twice() {
    let dir = tempfile::tempdir().unwrap();
    let made = Authority::create(dir.path(), now()).unwrap();
    let read = Authority::open(dir.path()).unwrap();
    assert_eq!((made.fingerprint(), made.ca_pem()), (read.fingerprint(), read.ca_pem()));
    assert_eq!(made.fingerprint().len(), 64);
    assert!(matches!(Authority::create(dir.path(), now()), Err(AuthorityError::Exists(_))));
}

#[test]
fn an_identity_is_never_written_over_and_its_key_is_the_owners() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(&dir.path().join("ca"), now()).unwrap();
    let identity = authority.issue_site(&ClientId::new("north").unwrap(), now()).unwrap();
    let to = dir.path().join("north");
    identity.write_identity(&to).unwrap();
    let key = fs::read_to_string(to.join("key.pem")).unwrap();
    assert!(matches!(identity.write_identity(&to), Err(AuthorityError::Exists(_))));
    assert_eq!(fs::read_to_string(to.join("key.pem")).unwrap(), key);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = |path: PathBuf| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(to.join("key.pem")), 0o600);
        assert_eq!(mode(dir.path().join("ca").join(CA_KEY)), 0o600);
    }
}

#[test]
fn names_that_cannot_stand_in_a_certificate_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path(), now()).unwrap();
    for bad in ["", "a b", "http://x"] {
        assert!(
            matches!(authority.issue_server(&[bad.into()], now()), Err(AuthorityError::Name(_))),
            "{bad}"
        );
    }
    assert!(authority.issue_server(&["fl.example.org".into(), "10.0.0.1".into()], now()).is_ok());
    assert!(matches!(authority.issue_operator("a/b", now()), Err(AuthorityError::Name(_))));
}

#[test]
fn an_authority_whose_files_are_damaged_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    Authority::create(dir.path(), now()).unwrap();
    fs::write(dir.path().join(CA_KEY), "nothing").unwrap();
    assert!(Authority::open(dir.path()).unwrap_err().to_string().contains(CA_KEY));
}
