//! Raw values over quinn's streams: a model in, an update out. Each is copied once: from the packets into the model, from the
//! update into the packets.

use bytes::Bytes;
use protocol::{DType, Values};
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

/// Reads the values of a block. Their number was checked against what this site allows.
pub(super) async fn read_block(
    recv: &mut RecvStream,
    (dtype, len): (DType, usize),
    pace: Option<&Pace>,
) -> Result<Values, FrameError> {
    async fn read<T: bytemuck::Pod>(
        recv: &mut RecvStream,
        mut values: Vec<T>,
        pace: Option<&Pace>,
    ) -> Result<Vec<T>, FrameError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut values);
        fill(recv, bytes, pace).await?;
        if cfg!(target_endian = "big") {
            bytemuck::cast_slice_mut::<T, u8>(&mut values)
                .chunks_exact_mut(size_of::<T>())
                .for_each(<[u8]>::reverse);
        }
        Ok(values)
    }
    Ok(match dtype {
        DType::I32 => Values::I32(read(recv, vec![0; len], pace).await?),
        DType::I64 => Values::I64(read(recv, vec![0; len], pace).await?),
        DType::U32 => Values::U32(read(recv, vec![0; len], pace).await?),
        DType::U64 => Values::U64(read(recv, vec![0; len], pace).await?),
        DType::F32 => Values::F32(read(recv, vec![0.0; len], pace).await?),
        DType::F64 => Values::F64(read(recv, vec![0.0; len], pace).await?),
        DType::U8 => Values::U8(read(recv, vec![0; len], pace).await?),
    })
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
    payload: Vec<Bytes>,
    pace: Option<&Pace>,
) -> Result<(), FrameError> {
    for mut rest in payload {
        let Some(pace) = pace else {
            send.write_chunk(rest).await?;
            continue;
        };
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(pace.piece()));
            pace.spend(piece.len()).await;
            send.write_chunk(piece).await?;
        }
    }
    Ok(())
}

/// Values as little-endian bytes, in the memory they are in.
pub(super) fn bytes_of(values: Values) -> Bytes {
    fn raw<T: bytemuck::Pod + Send>(mut values: Vec<T>) -> Bytes {
        if cfg!(target_endian = "big") {
            bytemuck::cast_slice_mut::<T, u8>(&mut values)
                .chunks_exact_mut(size_of::<T>())
                .for_each(<[u8]>::reverse);
        }
        Bytes::from_owner(Raw(values))
    }
    match values {
        Values::I32(values) => raw(values),
        Values::I64(values) => raw(values),
        Values::U32(values) => raw(values),
        Values::U64(values) => raw(values),
        Values::F32(values) => raw(values),
        Values::F64(values) => raw(values),
        Values::U8(values) => Bytes::from(values),
    }
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
