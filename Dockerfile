# The exporter in a container: not root, nothing to write to, no need of a shell. See
# deploy/docker/README.md.
#
#   docker build -t qemu-block-exporter .
#   docker buildx build --platform linux/amd64,linux/arm64 --build-arg SOURCE_DATE_EPOCH=... \
#       --output type=image,name=...,push=true,rewrite-timestamp=true .
#
# Every step is an exec form: the base needs Python and pip, and no shell. Nothing in it depends on
# the architecture. For builds that are the same in a year, pin the base by its digest
# (--build-arg PYTHON_IMAGE=python@sha256:...).
ARG PYTHON_IMAGE=python:3.13-slim-trixie

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 PYTHONHASHSEED=0
# What changes seldom comes first: a change of the exporter's own code builds from here on.
COPY deploy/docker/requirements-build.txt deploy/docker/requirements.txt /src/
RUN ["python3", "-m", "pip", "install", "--quiet", "--no-compile", "--require-hashes", "--target=/build", "-r", "/src/requirements-build.txt"]
RUN ["python3", "-m", "venv", "--without-pip", "/opt/qemu-block-exporter"]
RUN ["python3", "-m", "pip", "--python=/opt/qemu-block-exporter", "install", "--quiet", "--no-compile", "--require-hashes", "-r", "/src/requirements.txt"]
# A file's time is in the wheel: it is the same in every build.
ARG SOURCE_DATE_EPOCH=0
COPY pyproject.toml README.md LICENSE /src/
COPY exporter /src/exporter
ENV PYTHONPATH=/build
RUN ["python3", "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir=/dist", "/src"]
RUN ["python3", "-m", "pip", "--python=/opt/qemu-block-exporter", "install", "--quiet", "--no-compile", "--no-deps", "--no-index", "--find-links=/dist", "qemu-block-exporter"]
# Compiled here, because the file system is read-only there; checked by nothing, so without times.
RUN ["/opt/qemu-block-exporter/bin/python", "-m", "compileall", "-q", "-f", "--invalidation-mode=unchecked-hash", "/opt/qemu-block-exporter/lib"]

FROM ${PYTHON_IMAGE}
COPY --from=build /opt/qemu-block-exporter /opt/qemu-block-exporter
ARG PYTHON_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="qemu-block-exporter" \
      org.opencontainers.image.description="Prometheus exporter for the block layer of QEMU virtual machines" \
      org.opencontainers.image.vendor="The qemu-block-exporter maintainers" \
      org.opencontainers.image.source="https://github.com/qemu-block-exporter/qemu-block-exporter" \
      org.opencontainers.image.documentation="https://github.com/qemu-block-exporter/qemu-block-exporter/blob/main/deploy/docker/README.md" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENV PATH=/opt/qemu-block-exporter/bin:/usr/local/bin:/usr/bin:/bin PYTHONUNBUFFERED=1
# A number, so that Kubernetes can see that it is not root. It is nobody's on the host.
USER 65532:65532
EXPOSE 9709
# There is no curl, and none is needed. Where the port has TLS or users, say another one.
HEALTHCHECK --interval=30s --timeout=5s --start-period=10s --retries=3 \
    CMD ["python3", "-ISc", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9709, timeout=4); c.request('GET', '/-/healthy'); raise SystemExit(c.getresponse().status != 200)"]
# It listens on 127.0.0.1 here too, unless --web.listen-address says otherwise: whoever runs it says who
# may come in, and with the network of the host nobody may who was not meant.
ENTRYPOINT ["qemu-block-exporter"]
