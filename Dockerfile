# sagan_jax in a container, for a CPU, or with --build-arg JAX=cuda13, cuda12 or tpu.
#
#     docker build --build-arg JAX=cuda13 --tag sagan_jax .
#     docker run --rm --gpus all --volume "$PWD/runs:/sagan_jax/runs" sagan_jax \
#         --config configs/quickstart.py
#
# The arguments after the image's name are those of python -m sagan_jax.main.
FROM python:3.13-slim
ARG JAX=cpu
WORKDIR /sagan_jax
COPY requirements-lock.txt ./
RUN pip install --no-cache-dir "jax[$JAX]" -r requirements-lock.txt
COPY . .
ENTRYPOINT ["python", "-m", "sagan_jax.main"]
