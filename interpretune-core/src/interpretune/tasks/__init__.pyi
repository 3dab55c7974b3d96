from interpretune.tasks.finding import (
    OfferedTask as OfferedTask,
    find_task as find_task,
    offered_tasks as offered_tasks,
)
from interpretune.tasks.task import Part as Part, Task as Task
