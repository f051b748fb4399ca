-- GUE as Linux has it: version 0, four bytes, then the packet that the second one names. tshark has no dissector of its own.
local gue = Proto("bggue", "Generic UDP Encapsulation")
local number = ProtoField.uint8("bggue.proto", "Protocol")
gue.fields = { number }
local inner = { [4] = Dissector.get("ip"), [41] = Dissector.get("ipv6") }
function gue.dissector(buffer, pinfo, tree)
    if buffer:len() < 24 or buffer(0, 1):uint() ~= 0 or buffer(2, 2):uint() ~= 0 then return 0 end
    local dissector = inner[buffer(1, 1):uint()]
    if dissector == nil then return 0 end
    tree:add(gue, buffer(0, 4)):add(number, buffer(1, 1))
    dissector:call(buffer(4):tvb(), pinfo, tree)
    return buffer:len()
end
DissectorTable.get("udp.port"):add(6080, gue)
-- What the connections carry is of no protocol. tshark would read it by a port, also by that of the client, which may be any.
local data = Dissector.get("data")
for _, name in ipairs({"tcp.port", "udp.port"}) do
    local ports = DissectorTable.get(name)
    ports:add("5353", data)
    ports:add("32768-60999", data)
end
