"""A page with a button that counts aloud."""
import os
import time

# Nothing is told to anybody.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
import gradio


def count():
    for number in range(1, 6):
        yield f"counted to {number}"
        time.sleep(0.3)


with gradio.Blocks() as page:
    said = gradio.Textbox(label="said", elem_id="said")
    gradio.Button("Count", elem_id="count").click(count, outputs=said)

page.launch(server_name="127.0.0.1", server_port=int(os.environ["PORT"]))
