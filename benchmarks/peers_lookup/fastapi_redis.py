"""FastAPI and Redis as somebody writes it who knows both: redis-py with hiredis, and the JSON goes out as it came."""

import os

import redis.asyncio
from fastapi import FastAPI, HTTPException, Response

client = redis.asyncio.Redis(port=int(os.environ["REDIS_PORT"]))
app = FastAPI()


@app.get("/predictions/{customer_id}")
async def prediction(customer_id: int):
    found = await client.get(f"prediction:{customer_id:012d}")
    if found is None:
        raise HTTPException(404)
    return Response(found, media_type="application/json")
