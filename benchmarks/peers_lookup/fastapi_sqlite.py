"""FastAPI and SQLite as somebody writes it who knows both: one connection, and `async def`, so that no request changes threads."""

import os
import sqlite3

from fastapi import FastAPI, HTTPException

connection = sqlite3.connect(f"file:{os.environ['DATABASE']}?mode=ro", uri=True, check_same_thread=False)
OUTPUTS = ("probability", "band", "segment")
QUERY = f"select {', '.join(OUTPUTS)} from predictions where customer_id = ?"
app = FastAPI()


@app.get("/predictions/{customer_id}")
async def prediction(customer_id: int):
    row = connection.execute(QUERY, (customer_id,)).fetchone()
    if row is None:
        raise HTTPException(404)
    return dict(zip(OUTPUTS, row, strict=True))
