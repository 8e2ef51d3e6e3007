# The command in a container: `docker build -t consortia .`, then `docker run consortia --help`. docs/operations.md says more.
FROM rust:1.95-bookworm AS build
WORKDIR /build
COPY . .
RUN cp "$(deploy/static.sh | tail -n 1)" /consortia && \
    install --directory --mode 1777 /empty/tmp && install --directory --mode 700 /empty/data

# The program, the authorities that other people's servers are known by, and nothing else: `docker build --target alone`.
FROM scratch AS alone
COPY --from=build --chown=10001:10001 /empty /
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /consortia /usr/local/bin/
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 4433/udp 4433/tcp
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/consortia"]
CMD ["server", "run", "/data"]

# The same with a shell, which the chart's first start needs.
FROM debian:bookworm-slim
RUN useradd --system --uid 10001 --home-dir /data --create-home consortia
COPY --from=build /consortia /usr/local/bin/
USER 10001:10001
WORKDIR /data
VOLUME /data
EXPOSE 4433/udp 4433/tcp
STOPSIGNAL SIGTERM
ENTRYPOINT ["consortia"]
CMD ["server", "run", "/data"]
