"""The rival of service.py: an embedding model behind Sanic, Redis and FAISS, served as LibRecommender does.

    .rivals/bin/python tests/benchmarks/rivals/served_sanic.py fill FOLDER REDIS_PORT
    .rivals/bin/python tests/benchmarks/rivals/served_sanic.py serve FOLDER REDIS_PORT PORT

LibRecommender's own server, `libserving`, is no part of its package and cannot be installed, so this one was written
anew to do what that does for a request: look the user up in Redis, read from there what he had and his vector (both as
JSON), search a FAISS index of 80 regions of which 10 are looked into for as many items as are wanted and he had, leave
those out that he had, and read the name of each that is left from Redis, one after the other. Its answer has names
only, and neither scores nor titles. FOLDER holds what `service.py` writes: `users.json`, `items.json`, `vectors.npz`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import redis
import redis.asyncio
import ujson
from sanic import Request, Sanic
from sanic.exceptions import SanicException
from sanic.response import HTTPResponse
from sanic.response import json as json_answer

REGIONS, PROBES = 80, 10
ITEMS_WANTED = 10

app = Sanic("rival")


@app.get("/recommend/<user:str>")
async def recommend(request: Request, user: str) -> HTTPResponse:
    """Answer the ten best items that a user has not had."""
    store: Any = app.ctx.store
    row = await store.hget("rows", user)
    if row is None:
        raise SanicException(f"no user {user}", status_code=400)
    had = set(ujson.loads(await store.hget("had", row)))
    vector = np.array(ujson.loads(await store.hget("vectors", row)), dtype=np.float32)
    _, found = app.ctx.index.search(vector[None], ITEMS_WANTED + len(had))
    names = []
    for item in found[0].tolist():
        if item not in had:
            names.append(await store.hget("names", item))
            if len(names) == ITEMS_WANTED:
                break
    return json_answer({"user": user, "items": names})


@app.before_server_start
async def open_stores(app: Sanic, _: Any) -> None:
    """Connect to Redis and read the index, in the process that answers."""
    app.ctx.store = redis.asyncio.Redis(port=app.config.REDIS, decode_responses=True)
    app.ctx.index = faiss.read_index(app.config.INDEX)
    faiss.omp_set_num_threads(1)


def fill(folder: Path, redis_port: int) -> None:
    """Put users and items into Redis, and write the index."""
    vectors = np.load(folder / "vectors.npz")
    users, items = (json.loads((folder / f"{name}.json").read_text()) for name in ("users", "items"))
    store = redis.Redis(port=redis_port)
    pipe = store.pipeline()
    for row, (user, had) in enumerate(users):
        pipe.hset("rows", str(user), row)
        pipe.hset("had", row, ujson.dumps(had))
        pipe.hset("vectors", row, ujson.dumps(vectors["users"][row].tolist()))
        if row % 1000 == 0:
            pipe.execute()
    for row, item in enumerate(items):
        pipe.hset("names", row, str(item))
    pipe.execute()
    width = vectors["items"].shape[1]
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, REGIONS, faiss.METRIC_INNER_PRODUCT)
    index.train(vectors["items"])
    index.add(vectors["items"])
    index.nprobe = PROBES
    faiss.write_index(index, str(folder / "rival.faiss"))


if __name__ == "__main__":
    what, folder, redis_port, *port = sys.argv[1:]
    if what == "fill":
        fill(Path(folder), int(redis_port))
    else:
        app.config.update({"INDEX": str(Path(folder) / "rival.faiss"), "REDIS": int(redis_port)})
        app.run("127.0.0.1", int(port[0]), single_process=True, access_log=False, motd=False)
