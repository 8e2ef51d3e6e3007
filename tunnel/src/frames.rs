//! Datagrams as a byte stream and back. A length of zero, which no datagram has, ends the stream with an error.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use quinn::udp::RecvMeta;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Bytes read from or written to the stream at a time.
const BUFFER: usize = 16 << 10;

/// The frames of what quinn wants sent at once: several datagrams of `segment` bytes and a last, shorter one.
pub(crate) fn frames(contents: &[u8], segment: Option<usize>) -> Bytes {
    let segment = segment.unwrap_or(contents.len()).clamp(1, usize::from(u16::MAX));
    let mut framed = BytesMut::with_capacity(contents.len() + 2 * contents.len().div_ceil(segment));
    for datagram in contents.chunks(segment) {
        framed.put_u16(datagram.len() as u16);
        framed.put_slice(datagram);
    }
    framed.freeze()
}

/// Carries `outgoing` into the stream and gives what comes to `arrived`, each `marked`, until either end is closed, nothing has come
/// for `silence`, or `arrived` takes no more. What was to be sent before the sender's end is sent.
pub(crate) async fn carry<S, T>(
    stream: S,
    mut outgoing: mpsc::Receiver<Bytes>,
    silence: Duration,
    arrived: &mpsc::Sender<T>,
    marked: impl Fn(Bytes) -> T,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite,
{
    let (reader, writer) = tokio::io::split(stream);
    let (mut reader, mut writer) =
        (BufReader::with_capacity(BUFFER, reader), BufWriter::with_capacity(BUFFER, writer));
    let write = async {
        while let Some(framed) = outgoing.recv().await {
            writer.write_all(&framed).await?;
            if outgoing.is_empty() {
                writer.flush().await?;
            }
        }
        writer.shutdown().await
    };
    let read = async {
        loop {
            let Ok(datagram) = timeout(silence, next(&mut reader)).await else {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "the tunnel is silent"));
            };
            let Some(datagram) = datagram? else { return Ok(()) };
            if arrived.send(marked(datagram)).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = write => ended,
        ended = read => ended,
    }
}

/// The next datagram; `None` when the stream has ended between two.
async fn next(reader: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Bytes>> {
    let mut head = [0; 2];
    if reader.read(&mut head[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut head[1..]).await?;
    let len = usize::from(u16::from_be_bytes(head));
    if len == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "an empty datagram came through the tunnel"));
    }
    let mut datagram = vec![0; len];
    reader.read_exact(&mut datagram).await?;
    Ok(Some(datagram.into()))
}

/// Copies what has arrived, each with where it is from, to where quinn reads it. A datagram that is longer than quinn takes is
/// cut, and fails there. After the end of the streams nothing arrives any more.
pub(crate) fn drain(
    arrived: &Mutex<mpsc::Receiver<(SocketAddr, Bytes)>>,
    cx: &mut Context<'_>,
    bufs: &mut [IoSliceMut<'_>],
    meta: &mut [RecvMeta],
) -> Poll<io::Result<usize>> {
    let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
    let mut count = 0;
    for (buf, meta) in bufs.iter_mut().zip(meta.iter_mut()) {
        let Poll::Ready(Some((addr, datagram))) = arrived.poll_recv(cx) else { break };
        let len = datagram.len().min(buf.len());
        buf[..len].copy_from_slice(&datagram[..len]);
        *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
        count += 1;
    }
    if count > 0 { Poll::Ready(Ok(count)) } else { Poll::Pending }
}
