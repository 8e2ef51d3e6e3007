# The command in a container: `docker build -t consortia .`, then `docker run consortia --help`. docs/operations.md says more.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
RUN cargo build --release --locked --package consortia

FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --home-dir /data --create-home consortia
COPY --from=build /build/target/release/consortia /usr/local/bin/consortia
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 4433/udp 4433/tcp
STOPSIGNAL SIGTERM
ENTRYPOINT ["consortia"]
CMD ["server", "run", "/data"]
