"""The published client, unmodified, through every call of its session resource.

usage: comfydeploy_session.py URL KEY MACHINE_ID
"""
import asyncio
import sys
import time

from comfydeploy import ComfyDeploy
from comfydeploy.models import errors

url, key, machine_id = sys.argv[1:]


def until(what, limit_s=60):
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        value = what()
        if value is not None:
            return value
        time.sleep(0.02)
    raise SystemExit("waited in vain")


def by_hand(client):
    created = client.session.create(
        request={"machine_id": machine_id, "timeout": 5, "wait_for_server": True}
    ).create_session_response
    assert created.url.startswith("http://"), created
    got = client.session.get(session_id=created.session_id).session
    assert got.session_id == created.session_id and got.url == created.url, got
    assert got.timeout == 5 and got.gpu == "CPU" and got.machine_id == machine_id, got
    assert got.created_at.tzinfo is not None, got
    listed = client.session.list(machine_id=machine_id)
    events = listed.response_get_machine_sessions_sessions_get
    assert [event.session_id for event in events] == [created.session_id], events
    assert events[0].start_time is not None and events[0].end_time is None, events
    client.session.increase_timeout_session_increase_timeout_post(
        request={"machine_id": machine_id, "session_id": created.session_id, "timeout": 3, "gpu": "CPU"}
    )
    assert client.session.get(session_id=created.session_id).session.timeout == 8
    cancelled = client.session.cancel(session_id=created.session_id)
    assert cancelled.delete_session_response.success, cancelled
    until(lambda: client.session.list(machine_id=machine_id).response_get_machine_sessions_sessions_get == [] or None)
    try:
        client.session.get(session_id="6f1c1a52-5f3a-4a70-9f55-1f8f2d5f0a11")
        raise SystemExit("a session that never was was found")
    except errors.SDKError as error:
        assert error.status_code == 404, error
    try:
        client.session.create(request={"machine_id": machine_id, "timeout": 10**6})
        raise SystemExit("a timeout without end was granted")
    except errors.HTTPValidationError as error:
        assert error.data.detail[0].loc, error


async def async_by_hand(client):
    created = (await client.session.create_async(request={"machine_id": machine_id})).create_session_response
    assert created.url is None, created
    await client.session.cancel_async(session_id=created.session_id)


for server_url in (url, url + "/api"):
    with ComfyDeploy(bearer=key, server_url=server_url) as client:
        by_hand(client)
        asyncio.run(async_by_hand(client))
print("ok")
