//! Objects are whole, named by their hash, and unreadable until they are published.

use std::fs;
use std::path::Path;

use super::*;

fn at(dir: &Path) -> Objects {
    Objects::folder(dir.to_owned()).unwrap()
}

#[tokio::test]
async fn a_file_is_safetensors_and_reads_back_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(at(&dir.path().join("blobs")), None).unwrap();
    let values = [1.0, -0.0, f32::MIN_POSITIVE, 3.5, 7.25];
    let pieces = [
        Piece { name: "weight", shape: &[2, 2], values: &values[..4] },
        Piece { name: "bias", shape: &[1], values: &values[4..] },
    ];
    let hash = blobs.write(&pieces, "a test").await.unwrap();
    let read = blobs.read(&hash).await.unwrap();
    assert_eq!(read.map_bits(), values.to_vec().map_bits());
    let bytes = fs::read(blobs.show(&hash)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("weight").unwrap().shape(), [2, 2]);
    assert_eq!(file.tensor("bias").unwrap().data(), 7.25f32.to_le_bytes());
    assert_eq!(hexadecimal(Sha256::new().chain_update(&bytes)), hash);
}

trait Bits {
    fn map_bits(&self) -> Vec<u32>;
}
impl Bits for Vec<f32> {
    fn map_bits(&self) -> Vec<u32> {
        self.iter().map(|value| value.to_bits()).collect()
    }
}

#[tokio::test]
async fn a_damaged_or_missing_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(at(dir.path()), None).unwrap();
    let hash = blobs.write(&[Piece { name: "w", shape: &[2], values: &[1.0, 2.0] }], "a test").await.unwrap();
    let path = blobs.show(&hash);
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    assert!(blobs.read(&hash).await.unwrap_err().to_string().contains(&hash));
    fs::write(&path, [255; 12]).unwrap();
    assert!(matches!(blobs.read(&hash).await, Err(BlobError::Damaged { .. })));
    fs::remove_file(&path).unwrap();
    assert!(blobs.read(&hash).await.unwrap_err().to_string().contains("missing"));
}

#[tokio::test]
async fn only_files_that_nobody_keeps_are_collected() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(at(dir.path()), None).unwrap();
    let write = async |value| {
        blobs.write(&[Piece { name: "w", shape: &[1], values: &[value] }], "a test").await.unwrap()
    };
    let (old, new) = (write(1.0).await, write(2.0).await);
    blobs.collect(&[new.clone()].into(), &BTreeSet::new()).await.unwrap();
    assert!(blobs.read(&new).await.is_ok() && blobs.read(&old).await.is_err());
}

#[tokio::test]
async fn a_server_that_was_deposed_removes_nothing_of_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let of = |epoch| Blobs::open(at(dir.path()), epoch).unwrap();
    let write = async |blobs: &Blobs| {
        blobs.write(&[Piece { name: "w", shape: &[1], values: &[1.0] }], "a test").await.unwrap()
    };
    let (before, deposed, leads) = (of(None), of(Some(9)), of(Some(10)));
    let (first, second, third) = (write(&before).await, write(&deposed).await, write(&leads).await);
    assert_eq!((second.as_str(), third.as_str()), (&*format!("9-{first}"), &*format!("10-{first}")));
    deposed.collect(&BTreeSet::new(), &BTreeSet::new()).await.unwrap();
    assert!(
        leads.read(&third).await.is_ok()
            && before.read(&first).await.is_err()
            && deposed.read(&second).await.is_err()
    );
    leads.collect(&BTreeSet::new(), &BTreeSet::new()).await.unwrap();
    assert!(leads.read(&third).await.is_err());
}

#[tokio::test]
async fn what_is_sealed_cannot_be_read_before_it_is_published_and_is_the_same_then() {
    let dir = tempfile::tempdir().unwrap();
    let blobs = Blobs::open(at(dir.path()), None).unwrap();
    // More than one block, and not a whole number of them.
    let values: Vec<f32> = (0..PART / 4 + 7).map(|value| value as f32 + 0.5).collect();
    let pieces = [Piece { name: "weight", shape: &[values.len()], values: &values }];
    let (name, sealed) = blobs.seal(&pieces, "a test").await.unwrap();
    let files: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = files.as_slice() else { panic!("{files:?}") };
    let bytes = fs::read(file).unwrap();
    for shown in [&1.5f32.to_le_bytes()[..], b"weight", b"a test"] {
        let of_length = |window: &[u8]| window == shown;
        assert!(shown.len() == 4 || !bytes.windows(shown.len()).any(of_length), "{shown:?} can be read");
    }
    let plain: Vec<u8> = values[..64].iter().flat_map(|value| value.to_le_bytes()).collect();
    assert!(!bytes.windows(plain.len()).any(|window| window == plain));
    assert!(!file.to_string_lossy().contains(&name), "the name tells the hash of what is not paid for");
    assert!(!blobs.has(&name).await.unwrap() && blobs.read(&name).await.is_err());
    // With the key it reads back, and is published once for all.
    assert!(blobs.read_from(&name, Some(&sealed)).await.unwrap() == values);
    assert!(blobs.publish(&name, &sealed, &blobs).await.unwrap());
    assert!(blobs.read(&name).await.unwrap() == values);
    assert_eq!(blobs.source(&name).await.unwrap().as_deref(), Some("a test"));
    let other = Sealed { key: SealingKey::fresh().unwrap().1, ..sealed.clone() };
    assert!(blobs.publish(&name, &other, &blobs).await.is_err(), "another key opens it");
    blobs.collect(&[name.clone()].into(), &BTreeSet::new()).await.unwrap();
    assert!(!file.exists() && blobs.has(&name).await.unwrap());
}
