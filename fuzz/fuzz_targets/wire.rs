//! Reads arbitrary bytes as every message of the wire. Nothing may panic, and what is read must be written as the same
//! bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::{PayloadSpec, UpdateCodec};
use protocol::wire::{
    AdminReply, AdminRequest, AnswerHeader, CapableHello, FRAME_HEAD, FrameHead, FrameKind, Greeting, HEADER_MAX, Hello,
    LedgerClaim, LedgerProof, Notice, Receipt, Resent, TaskHeader, UnreadTask, Unsupported, decode, encode,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

fn reads<T: Serialize + DeserializeOwned>(kind: FrameKind, bytes: &[u8]) -> Option<T> {
    if let Some((head, _)) = bytes.split_first_chunk::<FRAME_HEAD>()
        && let Ok(head) = FrameHead::parse(*head, kind, HEADER_MAX)
    {
        assert!(head.len <= HEADER_MAX);
    }
    let message: T = decode(bytes).ok()?;
    assert_eq!(&encode(kind, &message)[FRAME_HEAD..], bytes);
    Some(message)
}

fuzz_target!(|bytes: &[u8]| {
    reads::<Hello>(FrameKind::Hello, bytes);
    reads::<CapableHello>(FrameKind::Hello, bytes);
    reads::<Unsupported>(FrameKind::Unsupported, bytes);
    reads::<Resent>(FrameKind::Resent, bytes);
    let _ = UnreadTask::of(bytes);
    reads::<Greeting>(FrameKind::Greeting, bytes);
    if let Some(header) = reads::<TaskHeader>(FrameKind::Task, bytes) {
        // The plan inside comes from outside as well.
        let _ = header.into_task(Vec::new(), Vec::new());
    }
    if let Some(header) = reads::<AnswerHeader>(FrameKind::Answer, bytes) {
        let _ = (header.payload_bytes(), header.check_lengths(&PayloadSpec::update(10, UpdateCodec::Packed)));
    }
    let half = UpdateCodec::TopK { fraction: 0.5 };
    for codec in [UpdateCodec::Packed, UpdateCodec::F16, UpdateCodec::Bf16, UpdateCodec::Int8, half] {
        for len in [0, 1, 40, 1500] {
            // What is read as points has this one form, unless that would not be short.
            if let Ok(points) = codec.unpack(bytes, len)
                && let Some(packed) = codec.pack(&points)
            {
                assert_eq!(packed, bytes);
            }
        }
    }
    reads::<Receipt>(FrameKind::Receipt, bytes);
    reads::<Notice>(FrameKind::Notice, bytes);
    reads::<LedgerClaim>(FrameKind::LedgerClaim, bytes);
    reads::<LedgerProof>(FrameKind::LedgerProof, bytes);
    reads::<AdminRequest>(FrameKind::AdminRequest, bytes);
    reads::<AdminReply>(FrameKind::AdminReply, bytes);
});
