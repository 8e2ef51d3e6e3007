//! Raw values over quinn's streams: a model in, an update out. Each is copied once: from the packets into the model, from the
//! update into the packets.

use bytes::Bytes;
use protocol::wire::Payload;
use quinn::{RecvStream, SendStream};

use super::frames::FrameError;
use super::pace::Pace;

/// Pieces taken from a stream at a time. They are copied while the connection takes in what comes next.
const PIECES: usize = 64;

/// Reads `len` little-endian values, in the memory of `spare` where that has the length. Memory grows with the bytes received
/// and never with a length that was only announced: fresh pages are touched as bytes come in.
pub(super) async fn read_model(
    recv: &mut RecvStream,
    len: usize,
    spare: Vec<f32>,
    pace: Option<&Pace>,
) -> Result<Vec<f32>, FrameError> {
    let mut values = if spare.len() == len { spare } else { vec![0.0; len] };
    fill(recv, bytemuck::cast_slice_mut(&mut values), pace).await?;
    if cfg!(target_endian = "big") {
        values.iter_mut().for_each(|value| *value = f32::from_bits(value.to_bits().swap_bytes()));
    }
    Ok(values)
}

/// Fills `bytes`, and refuses more.
async fn fill(recv: &mut RecvStream, mut bytes: &mut [u8], pace: Option<&Pace>) -> Result<(), FrameError> {
    let mut pieces = [const { Bytes::new() }; PIECES];
    while !bytes.is_empty() {
        let count = recv.read_chunks(&mut pieces).await?.ok_or(FrameError::Ended)?;
        let before = bytes.len();
        for piece in &mut pieces[..count] {
            let (here, rest) = bytes.split_at_mut_checked(piece.len()).ok_or(FrameError::Excess)?;
            here.copy_from_slice(piece);
            *piece = Bytes::new();
            bytes = rest;
        }
        if let Some(pace) = pace {
            pace.spend(before - bytes.len()).await;
        }
    }
    Ok(())
}

/// Writes the values from the memory they are in, which is free once the server has acknowledged them.
pub(super) async fn write_payload(
    send: &mut SendStream,
    payload: Payload,
    pace: Option<&Pace>,
) -> Result<(), FrameError> {
    let bytes = match payload {
        Payload::None => return Ok(()),
        Payload::Points(mut points) => {
            points.iter_mut().for_each(|point| *point = point.to_le());
            Bytes::from_owner(Raw(points))
        }
        Payload::Packed(bytes) => Bytes::from(bytes),
        Payload::Words(mut words) => {
            words.iter_mut().for_each(|word| *word = word.to_le());
            Bytes::from_owner(Raw(words))
        }
    };
    let Some(pace) = pace else { return Ok(send.write_chunk(bytes).await?) };
    let mut rest = bytes;
    while !rest.is_empty() {
        let piece = rest.split_to(rest.len().min(pace.piece()));
        pace.spend(piece.len()).await;
        send.write_chunk(piece).await?;
    }
    Ok(())
}

/// Numbers as the bytes they are.
struct Raw<T>(Vec<T>);

impl<T: bytemuck::Pod> AsRef<[u8]> for Raw<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_is_sent_from_its_own_memory() {
        let points = vec![1i32.to_le(), (-2i32).to_le()];
        let place = points.as_ptr().cast();
        let bytes = Bytes::from_owner(Raw(points));
        assert_eq!(bytes.as_ptr(), place);
        assert_eq!(&bytes[..], [1i32.to_le_bytes(), (-2i32).to_le_bytes()].concat());
    }
}
