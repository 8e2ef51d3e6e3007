//! What the authority signs, and what it refuses to.

use std::time::Duration as StdDuration;

use rcgen::PublicKeyData;

use super::*;
use crate::net::transport::peer::{Peer, validity_of_pem};

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
    for bad in ["", "a b", "http://x", ".", "..", "a..b", ".a", "a-.b", "-a"] {
        assert!(
            matches!(authority.issue_server(&[bad.into()], now()), Err(AuthorityError::Name(_))),
            "{bad}"
        );
    }
    assert!(
        authority.issue_server(&["fl.example.org".into(), "10.0.0.1".into(), "a_b.c.".into()], now()).is_ok()
    );
    assert!(matches!(authority.issue_operator("a/b", now()), Err(AuthorityError::Name(_))));
}

#[test]
fn an_authority_whose_files_are_damaged_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    Authority::create(dir.path(), now()).unwrap();
    fs::write(dir.path().join(CA_KEY), "nothing").unwrap();
    assert!(Authority::open(dir.path()).unwrap_err().to_string().contains(CA_KEY));
}

#[test]
fn of_a_signing_request_nothing_but_the_key_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let root = Authority::create(dir.path(), now()).unwrap();
    // What a running server has: the root's key is somewhere else.
    fs::remove_file(dir.path().join(CA_KEY)).unwrap();
    let issuing = Issuing::open(dir.path()).unwrap();
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let mut asked = named(OPERATOR_URI, "mallory", now(), 9000).unwrap();
    asked.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    asked.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let request = Request::parse(asked.serialize_request(&key).unwrap().der()).unwrap();
    let chain = issuing.certify(&ClientId::new("north").unwrap(), &request, now()).unwrap();
    let certificates: Vec<_> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap();
    assert_eq!(certificates.len(), 2);
    let issued = 1_767_225_600;
    let north = Peer::Site { name: ClientId::new("north").unwrap(), issued };
    assert_eq!(Peer::of(&certificates[0]), Some(north));
    let (_, certificate) = x509_parser::parse_x509_certificate(&certificates[0]).unwrap();
    assert!(!certificate.is_ca());
    let usage = certificate.extended_key_usage().unwrap().unwrap().value;
    assert!(usage.client_auth && !usage.server_auth);
    let days = certificate.validity().not_after.timestamp() - issued.cast_signed();
    assert_eq!(days / 86_400, LEAF_DAYS);
    assert_eq!(certificate.public_key().raw, key.subject_public_key_info());

    // Near the end of the issuing certificate nothing is promised beyond it, until it is renewed.
    let late = now() + StdDuration::from_secs(86_400 * (ISSUER_DAYS - 10).cast_unsigned());
    let days_left = |issuing: &Issuing| {
        let chain = issuing.certify(&ClientId::new("north").unwrap(), &request, late).unwrap();
        let (_, ends) = validity_of_pem(chain.as_bytes()).unwrap();
        (ends - late.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()) / 86_400
    };
    assert_eq!(days_left(&issuing), 10);
    assert!(issuing.successor().unwrap().is_none());
    root.renew_issuing(dir.path(), late).unwrap();
    assert_eq!(days_left(&issuing.successor().unwrap().unwrap()), LEAF_DAYS.cast_unsigned());
}

#[test]
fn a_signing_request_that_is_damaged_or_of_another_kind_of_key_is_refused() {
    let request = |key: &KeyPair| CertificateParams::default().serialize_request(key).unwrap().der().to_vec();
    let good = request(&KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap());
    assert!(Request::parse(&good).is_ok());
    for at in [10, good.len() / 2, good.len() - 1] {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        assert!(Request::parse(&damaged).is_err(), "{at}");
    }
    assert!(Request::parse(b"").is_err() && Request::parse(&good[..40]).is_err());
    for kind in [&rcgen::PKCS_ED25519, &rcgen::PKCS_ECDSA_P384_SHA384] {
        assert!(Request::parse(&request(&KeyPair::generate_for(kind).unwrap())).is_err());
    }
}

#[test]
fn the_uri_alone_says_who_it_is() {
    let now = now();
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::create(dir.path(), now).unwrap();
    let peer = |pem: &str| Peer::of(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap());
    let north = ClientId::new("north").unwrap();
    let site = authority.issue_site(&north, now).unwrap();
    let issued = 1_767_225_600;
    assert_eq!(peer(&site.cert_pem), Some(Peer::Site { name: north, issued }));
    let operator = authority.issue_operator("ada", now).unwrap();
    assert_eq!(peer(&operator.cert_pem), Some(Peer::Operator("ada".into())));
    assert_eq!(peer(&authority.issue_server(&[], now).unwrap().cert_pem), None);
    assert_eq!(Peer::of(b"not a certificate"), None);
}
